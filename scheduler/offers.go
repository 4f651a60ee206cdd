package scheduler

import (
	"math/bits"
	"slices"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Seeder is the supernode's view of one task that it super-seeds.
type Seeder struct {
	// Available are the pieces the supernode can serve now.
	Available task.Set
	// Complete says that it has fetched the whole task from the origin.
	Complete bool
	// Peers are the peers connected now. Who has left is not listed: its
	// pieces, unless somebody else has them, are then offered again.
	Peers []SeedPeer
}

// SeedPeer is a peer that the supernode may offer pieces to.
type SeedPeer struct {
	// Name identifies the peer, Zone says where it stands.
	Name, Zone string
	// Held are the pieces it holds, Pending those it was offered and does not
	// hold yet.
	Held, Pending task.Set
	// Whole says that the peer wants every piece. Others are offered what
	// they ask for, which is no matter of policy.
	Whole bool
	// Stalled says that it made no progress on its pending pieces for a while
	// (seconds). It gets no offers, and its pending pieces go to others.
	Stalled bool
	// Starved says that it lacks pieces, has none pending, and gained none for
	// a while, from whomever: its parents are of no use. It is offered pieces
	// however many peers hold them.
	Starved bool
}

// Offer gives the peer with index Peer in Seeder.Peers the right to fetch a
// piece from the supernode.
type Offer struct {
	Peer, Piece int
}

// spread is the number of holders from which on a piece needs no help from the
// supernode. It is less than maxCount.
const spread = 3

// Offers returns the offers to make now, to be added to the peers' Pending
// sets. No peer gets more than window pending offers.
//
// Pieces that no peer holds or has pending are offered first, in ascending
// order, so that readers in order get going, each to the peer with the fewest
// pieces that are pending or that it alone holds; a tie is broken by the
// piece's number. Who passes on slowly, or not at all, thereby gets less to
// pass on.
//
// Only when there are no such pieces, and the supernode has the whole task, so
// that its uplink has nothing newer to carry, are pieces offered again, and
// only to peers with no pending offers, one each: first to a zone that lacks
// the piece altogether, through the member that owns it by ZoneShare, then the
// rarest pieces with fewer than three holders. A starved peer may get any.
func Offers(s Seeder, window int) []Offer {
	if window <= 0 || len(s.Peers) == 0 {
		return nil
	}
	r := newRound(s, window)
	if !r.first() || !s.Complete {
		return r.offers
	}
	r.zones()
	r.again()
	return r.offers
}

// round is one run of Offers.
type round struct {
	Seeder
	window  int
	pending []int // per peer, offers of this round included; window for peers that get none
	load    []int // per peer, pending offers and pieces it alone holds
	offers  []Offer
}

func newRound(s Seeder, window int) *round {
	r := &round{Seeder: s, window: window, pending: make([]int, len(s.Peers)), load: make([]int, len(s.Peers))}
	for i, p := range s.Peers {
		if !p.Whole || p.Stalled {
			r.pending[i] = window
			continue
		}
		for w, pend := range p.Pending {
			r.pending[i] += bits.OnesCount64(pend &^ word(p.Held, w))
		}
		r.load[i] = r.pending[i]
	}
	for w := range r.Available {
		var once, more uint64
		for i := range r.Peers {
			held := word(r.Peers[i].Held, w)
			more |= once & held
			once |= held
		}
		if once &^= more; once == 0 {
			continue
		}
		for i := range r.Peers {
			r.load[i] += bits.OnesCount64(once & word(r.Peers[i].Held, w))
		}
	}
	return r
}

func (r *round) offer(peer, piece int) {
	r.offers = append(r.offers, Offer{Peer: peer, Piece: piece})
	r.pending[peer]++
	r.load[peer]++
}

// given returns the pieces that need no first offer: those that a peer holds,
// or is about to. With a zone, only its peers count.
func (r *round) given(zone *string) task.Set {
	got := make(task.Set, len(r.Available))
	for i := range r.Peers {
		p := &r.Peers[i]
		if zone != nil && p.Zone != *zone {
			continue
		}
		for w := range got {
			got[w] |= p.has(w)
		}
	}
	return got
}

// has returns word w of what the peer holds or is about to.
func (p *SeedPeer) has(w int) uint64 {
	if p.Stalled {
		return word(p.Held, w)
	}
	return word(p.Held, w) | word(p.Pending, w)
}

// first offers every piece that nobody has, and reports whether there was room
// for all.
func (r *round) first() bool {
	given := r.given(nil)
	low := -1 // no open peer has a lower load
	for w, have := range r.Available {
		for fresh := have &^ given[w]; fresh != 0; fresh &= fresh - 1 {
			piece := w*64 + bits.TrailingZeros64(fresh)
			peer := r.openWith(low, piece)
			if peer < 0 {
				if low = r.leastLoad(); low < 0 {
					return false
				}
				peer = r.openWith(low, piece)
			}
			r.offer(peer, piece)
		}
	}
	return true
}

// leastLoad returns the lowest load of the peers with room in their window, or
// -1 when there are none.
func (r *round) leastLoad() int {
	least := -1
	for i, load := range r.load {
		if r.pending[i] < r.window && (least < 0 || load < least) {
			least = load
		}
	}
	return least
}

// openWith returns a peer of the given load with room in its window, or -1. It
// starts the search at a place that depends on the piece.
func (r *round) openWith(load, piece int) int {
	for i := range r.load {
		if peer := (piece + i) % len(r.load); r.load[peer] == load && r.pending[peer] < r.window {
			return peer
		}
	}
	return -1
}

// zones offers each idle peer one piece that its zone lacks and it owns there.
func (r *round) zones() {
	members := make(map[string][]string)
	for _, p := range r.Peers {
		if p.Whole {
			members[p.Zone] = append(members[p.Zone], p.Name)
		}
	}
	if len(members) < 2 {
		return
	}
	given := make(map[string]task.Set, len(members))
	for i := range r.Peers {
		p := &r.Peers[i]
		if r.pending[i] != 0 {
			continue
		}
		if given[p.Zone] == nil {
			given[p.Zone] = r.given(&p.Zone)
		}
		share := ZoneShare(p.Name, members[p.Zone])
		for w, have := range r.Available {
			if owed := have &^ given[p.Zone][w] & share.word(w); owed != 0 {
				r.offer(i, 64*w+bits.TrailingZeros64(owed))
				break
			}
		}
	}
}

// again offers each idle peer the rarest piece it lacks.
func (r *round) again() {
	if !slices.Contains(r.pending, 0) {
		return
	}
	byHolders := r.byHolders()
	for i := range r.Peers {
		if r.pending[i] != 0 {
			continue
		}
		levels := spread
		if r.Peers[i].Starved {
			levels++
		}
		for n := range levels {
			w := r.lacks(i, byHolders[n])
			if w < 0 {
				continue
			}
			bit := byHolders[n][w] &^ r.Peers[i].has(w)
			bit &= -bit
			if n < spread { // one more is about to hold it
				byHolders[n][w] &^= bit
				byHolders[n+1][w] |= bit
			}
			r.offer(i, 64*w+bits.TrailingZeros64(bit))
			break
		}
	}
}

// lacks returns the first word of which the peer lacks a piece, or -1.
func (r *round) lacks(peer int, of task.Set) int {
	for w, have := range of {
		if have&^r.Peers[peer].has(w) != 0 {
			return w
		}
	}
	return -1
}

// byHolders divides the available pieces by the number of peers that hold them
// or are about to; the last set has those with spread holders or more.
func (r *round) byHolders() [spread + 1]task.Set {
	var sets [spread + 1]task.Set
	for n := range sets {
		sets[n] = make(task.Set, len(r.Available))
	}
	for w, have := range r.Available {
		var count counter
		for i := range r.Peers {
			count.add(r.Peers[i].has(w))
		}
		for n := range spread {
			upTo := have & count.atMost(n)
			sets[n][w] = upTo
			have &^= upTo
		}
		sets[spread][w] = have
	}
	return sets
}

// word returns word w of a set of any length.
func word(s task.Set, w int) uint64 {
	if w < len(s) {
		return s[w]
	}
	return 0
}
