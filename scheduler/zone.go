package scheduler

import "slices"

// Share is the part of a task's pieces that a peer may fetch from other zones:
// those whose number leaves the remainder Slot when divided by Of. The zero
// value is the whole task.
type Share struct {
	Slot, Of int
}

// Allows reports whether piece belongs to the share.
func (s Share) Allows(piece int) bool {
	return s.Of <= 1 || piece%s.Of == s.Slot
}

// word returns the pieces of the share among [64w, 64w+64).
func (s Share) word(w int) uint64 {
	if s.Of <= 1 {
		return ^uint64(0)
	}
	if s.Slot < 0 || s.Slot >= s.Of {
		return 0
	}
	var out uint64
	for bit := (s.Slot + s.Of - 64*w%s.Of) % s.Of; bit < 64; bit += s.Of {
		out |= 1 << bit
	}
	return out
}

// ZoneShare divides the import of a task among the members of a zone: the
// shares of all members together hold each piece once. The members are the
// peers of the zone that want the whole task, in any order, the same for all
// of them. A peer that is no member, or has no zone, may import everything.
//
// When the members change, owners change with them. A piece may then be
// imported twice, but none is left without an owner.
func ZoneShare(self string, zoneMembers []string) Share {
	members := slices.Clone(zoneMembers)
	slices.Sort(members)
	members = slices.Compact(members)
	slot, ok := slices.BinarySearch(members, self)
	if !ok {
		return Share{}
	}
	return Share{Slot: slot, Of: len(members)}
}
