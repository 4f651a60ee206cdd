package scheduler

import (
	"slices"
	"strconv"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

// taker is a peer that wants the whole task.
func taker(held, pending task.Set) SeedPeer {
	return SeedPeer{Whole: true, Held: held, Pending: pending}
}

func TestOffers(t *testing.T) {
	none := task.Set(nil)
	stalled := func(p SeedPeer) SeedPeer { p.Stalled = true; return p }
	starved := func(p SeedPeer) SeedPeer { p.Starved = true; return p }
	in := func(zone string, p SeedPeer) SeedPeer { p.Zone = zone; return p }
	tests := []struct {
		name     string
		have     task.Set
		complete bool
		window   int
		peers    []SeedPeer
		want     []Offer
	}{
		{"nobody", set(1), true, 2, nil, nil},
		{"no window", set(1), true, 0, []SeedPeer{taker(none, none)}, nil},
		{"a single peer gets all, lowest first, up to the window", set(1, 2, 3), false, 2,
			[]SeedPeer{taker(none, none)}, []Offer{{0, 1}, {0, 2}}},
		{"each piece once", set(0, 1, 2), false, 4,
			[]SeedPeer{taker(none, none), taker(none, none)}, []Offer{{0, 0}, {1, 1}, {0, 2}}},
		{"to the least pending", set(4, 5, 9), false, 2,
			[]SeedPeer{taker(none, set(9)), taker(none, none)}, []Offer{{1, 4}, {1, 5}}},
		{"not what a peer holds or has pending", set(0, 1, 2), false, 4,
			[]SeedPeer{taker(set(0), set(1)), taker(none, none)}, []Offer{{1, 2}}},
		{"pending pieces that have arrived are none", set(0, 1), false, 1,
			[]SeedPeer{taker(set(0), set(0))}, []Offer{{0, 1}}},
		{"a stalled peer's pending pieces to others", set(0), false, 2,
			[]SeedPeer{stalled(taker(none, set(0))), taker(none, none)}, []Offer{{1, 0}}},
		{"nothing to peers that want a part", set(0), false, 2,
			[]SeedPeer{{Held: none}, taker(none, none)}, []Offer{{1, 0}}},
		{"nothing twice while the task is coming in", set(0), false, 2,
			[]SeedPeer{taker(none, none), taker(set(0), none)}, nil},
		{"twice when it is complete, to idle peers", set(0, 1), true, 2,
			[]SeedPeer{taker(none, none), taker(set(0), set(1))}, []Offer{{0, 0}}},
		{"the rarest then", set(0, 1), true, 2,
			[]SeedPeer{taker(none, none), taker(set(0, 1), none), taker(set(0), set(5))}, []Offer{{0, 1}, {2, 1}}[:1]},
		{"nothing twice while there is anything to give once", set(0, 1, 2, 3), true, 1,
			[]SeedPeer{taker(none, none), taker(set(0), none)}, []Offer{{0, 1}, {1, 2}}},
		{"to who has passed on what it got", set(0, 1, 2, 3, 4, 5), false, 2,
			[]SeedPeer{taker(set(0, 1, 2), none), taker(set(2, 3), none)}, []Offer{{1, 4}, {1, 5}}},
		{"idle peers get different pieces", set(0, 1), true, 2,
			[]SeedPeer{taker(none, none), taker(none, none), taker(set(0, 1), none)}, []Offer{{0, 0}, {1, 1}}},
		{"well spread pieces need no help", set(0), true, 2,
			[]SeedPeer{taker(none, none), taker(set(0), none), taker(set(0), none), taker(set(0), none)}, nil},
		{"but a starved peer does", set(0), true, 2,
			[]SeedPeer{starved(taker(none, none)), taker(set(0), none), taker(set(0), none), taker(set(0), none)}, []Offer{{0, 0}}},
		{"one piece once, not once a zone, at first", set(0, 1), false, 4,
			[]SeedPeer{in("a", taker(none, none)), in("b", taker(none, none))}, []Offer{{0, 0}, {1, 1}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for i := range test.peers {
				test.peers[i].Name = "peer-" + strconv.Itoa(i)
			}
			got := Offers(Seeder{Available: test.have, Complete: test.complete, Peers: test.peers}, test.window)
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// A zone that lacks a piece gets it through the member that also imports it
// from other peers, so that it does not come in twice.
func TestOffersThroughOwner(t *testing.T) {
	var peers []SeedPeer
	for i := range 3 {
		peers = append(peers, SeedPeer{Name: "far-" + strconv.Itoa(i), Zone: "far", Whole: true, Held: set(0, 1, 2, 3, 4, 5)})
	}
	var names []string
	for i := range 3 {
		names = append(names, "near-"+strconv.Itoa(i))
		peers = append(peers, SeedPeer{Name: names[i], Zone: "near", Whole: true})
	}
	got := Offers(Seeder{Available: set(0, 1, 2, 3, 4, 5), Complete: true, Peers: peers}, 2)
	if len(got) != 3 {
		t.Fatalf("got %v, want an offer to each member of the zone", got)
	}
	for _, o := range got {
		if !ZoneShare(peers[o.Peer].Name, names).Allows(o.Piece) {
			t.Errorf("piece %d was offered to %s, which does not own it", o.Piece, peers[o.Peer].Name)
		}
	}
}

func FuzzOffers(f *testing.F) {
	f.Add([]byte{0xff, 0x0f, 3, 1, 2, 1, 0x0f, 0x01, 1, 0, 0x10, 3, 9, 0})
	f.Add([]byte{0x3f, 2, 1, 1, 1, 0, 0, 5, 0, 0x30})
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func() int {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return int(b)
		}
		word := func() task.Set { return task.Set{uint64(next()), uint64(next())}[:next()%3] }
		s := Seeder{Available: word(), Complete: next()&1 != 0}
		window := next() % 5
		for range next() % 6 {
			flags := next()
			s.Peers = append(s.Peers, SeedPeer{
				Name: strconv.Itoa(next() % 5), Zone: strconv.Itoa(flags >> 4 & 1), Held: word(), Pending: word(),
				Whole: flags&1 != 0, Stalled: flags&2 != 0, Starved: flags&4 != 0,
			})
		}
		pending := make([]int, len(s.Peers))
		seen := map[Offer]bool{}
		for _, o := range Offers(s, window) {
			p := s.Peers[o.Peer]
			pending[o.Peer]++
			if !s.Available.Has(o.Piece) || p.Held.Has(o.Piece) || p.Pending.Has(o.Piece) && !p.Stalled || seen[o] {
				t.Errorf("wrong offer %v of %+v", o, s)
			}
			if !p.Whole || p.Stalled {
				t.Errorf("offer %v to a peer that gets none", o)
			}
			seen[o] = true
		}
		for i, n := range pending {
			if n > window {
				t.Errorf("%d offers to peer %d, at most %d", n, i, window)
			}
		}
	})
}

func BenchmarkOffers(b *testing.B) {
	const pieces, peers = 4096, 1000
	for _, complete := range []bool{false, true} {
		b.Run("complete "+strconv.FormatBool(complete), func(b *testing.B) {
			s := Seeder{Available: task.FullSet(pieces), Complete: complete}
			for i := range peers {
				held := task.NewSet(pieces)
				for p := range pieces {
					if mix(uint64(p*peers+i))%2 == 0 {
						held.Add(p)
					}
				}
				s.Peers = append(s.Peers, SeedPeer{Name: strconv.Itoa(i), Whole: true, Held: held, Pending: task.NewSet(pieces)})
			}
			b.ReportAllocs()
			for b.Loop() {
				Offers(s, 2)
			}
		})
	}
}
