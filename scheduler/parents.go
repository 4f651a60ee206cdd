package scheduler

import (
	"cmp"
	"slices"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Peer is one peer of a task, as the supernode knows it.
type Peer struct {
	// Name identifies the peer.
	Name string
	// Zone and Rack say where it stands; empty when unknown. A rack is
	// compared only within a zone.
	Zone, Rack string
	// Held is the number of the task's pieces it holds.
	Held int
	// Complete says that it holds all of them.
	Complete bool
	// Quarantined peers are nobody's parents.
	Quarantined bool
	// Children is the number of peers it is a parent of now.
	Children int
}

// Parents chooses up to limit parents for self from candidates, which may
// include self, in order of preference. The supernode is no candidate: it is
// a parent of every peer in addition.
//
// Peers of the own zone come first; a quarter of the places (at least one,
// unless limit is one) goes to other zones, through which the zone imports.
// Within the zone the own rack is preferred, but a third of the places goes to
// other racks, or racks would be islands. Within each of these groups a quarter
// of the places goes to peers that are well ahead of self, complete ones
// first. Places a group cannot fill fall to the others.
//
// All else is decided by a hash of task, self and candidate, which makes the
// whole a random graph: connected at any size, different for each task, and
// nearly the same after a peer has come or gone. A candidate that already has
// more than twice limit children gives way to less loaded ones.
func Parents(id task.ID, self Peer, candidates []Peer, limit int) []string {
	if limit <= 0 {
		return nil
	}
	var rack, zone, far group
	for _, c := range rank(id, self, candidates, limit) {
		switch {
		case self.Zone != "" && c.Zone != self.Zone:
			far = append(far, c)
		case self.Rack != "" && c.Rack == self.Rack && c.Zone == self.Zone:
			rack = append(rack, c)
		default:
			zone = append(zone, c)
		}
	}
	nFar := min(len(far), max(limit-len(rack)-len(zone), (limit+3)/4))
	if limit == 1 && len(rack)+len(zone) > 0 {
		nFar = 0
	}
	near := limit - nFar
	nZone := min(len(zone), max(near-len(rack), (near+2)/3))
	nRack := min(len(rack), near-nZone)

	names := make([]string, 0, nRack+nZone+nFar)
	names = rack.pick(names, nRack)
	names = zone.pick(names, nZone)
	return far.pick(names, nFar)
}

// ranked is a candidate with what it is ordered by.
type ranked struct {
	Peer
	load  int    // children, in multiples of twice the limit
	ahead int    // 2 complete, 1 well ahead of self, 0 otherwise
	hash  uint64 // rendezvous
}

// group is a list of candidates, best first.
type group []ranked

// rank drops who cannot be a parent and orders the rest.
func rank(id task.ID, self Peer, candidates []Peer, limit int) group {
	g := make(group, 0, len(candidates))
	for _, c := range candidates {
		if c.Name == self.Name || c.Quarantined {
			continue
		}
		r := ranked{Peer: c, load: max(c.Children, 0) / limit / 2, hash: hashStrings(string(id), self.Name, c.Name)}
		switch {
		case c.Complete:
			r.ahead = 2
		case c.Held/2 > self.Held:
			r.ahead = 1
		}
		g = append(g, r)
	}
	slices.SortFunc(g, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.load, b.load), cmp.Compare(a.hash, b.hash), cmp.Compare(a.Name, b.Name))
	})
	return slices.CompactFunc(g, func(a, b ranked) bool { return a.Name == b.Name })
}

// pick appends the names of n of the group, best first, a quarter of them
// being the furthest ahead.
func (g group) pick(names []string, n int) []string {
	if n <= 0 {
		return names
	}
	chosen := make(map[string]bool, n)
	byProgress := slices.Clone(g)
	slices.SortStableFunc(byProgress, func(a, b ranked) int { return cmp.Compare(b.ahead, a.ahead) })
	for _, c := range byProgress[:min(len(g), (n+3)/4)] {
		chosen[c.Name] = true
	}
	for _, c := range g {
		if len(chosen) >= n {
			break
		}
		chosen[c.Name] = true
	}
	for _, c := range g {
		if chosen[c.Name] {
			names = append(names, c.Name)
		}
	}
	return names
}
