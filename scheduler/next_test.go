package scheduler

import (
	"fmt"
	"slices"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

// checkFetch reports a request that Next must never return.
func checkFetch(d Download, f Fetch) error {
	if f.Parent < 0 || f.Parent >= len(d.Parents) {
		return fmt.Errorf("piece %d from parent %d of %d", f.Piece, f.Parent, len(d.Parents))
	}
	p := d.Parents[f.Parent]
	under := func(g Fetching) bool { return g.Piece == f.Piece }
	again := func(g Fetching) bool { return g.Piece == f.Piece && g.Parent == f.Parent }
	switch {
	case !d.Wanted.Has(f.Piece) || !d.Known.Has(f.Piece) || d.Held.Has(f.Piece):
		return fmt.Errorf("piece %d is not to be fetched", f.Piece)
	case !p.Has.Has(f.Piece):
		return fmt.Errorf("parent %d does not have piece %d", f.Parent, f.Piece)
	case p.Paused:
		return fmt.Errorf("parent %d is paused", f.Parent)
	case p.Foreign && !p.Seed && !d.Starved && !d.Share.Allows(f.Piece):
		return fmt.Errorf("piece %d from foreign parent %d is not in the share", f.Piece, f.Parent)
	case f.Duplicate != slices.ContainsFunc(d.Fetching, under):
		return fmt.Errorf("piece %d: Duplicate is %v", f.Piece, f.Duplicate)
	case slices.ContainsFunc(d.Fetching, again):
		return fmt.Errorf("piece %d is already being fetched from parent %d", f.Piece, f.Parent)
	}
	return nil
}

// checkFetches reports an answer of Next that breaks a rule.
func checkFetches(d Download, fetches []Fetch) error {
	copies, load, busy := map[int]int{}, map[int]int{}, 0
	for _, f := range d.Fetching {
		copies[f.Piece]++
		if !f.Stuck {
			busy++
		}
	}
	for _, f := range fetches {
		if err := checkFetch(d, f); err != nil {
			return err
		}
		copies[f.Piece]++
		load[f.Parent]++
		busy++
		if most := 1; copies[f.Piece] > most && !f.Duplicate || copies[f.Piece] > 2 {
			return fmt.Errorf("%d requests for piece %d", copies[f.Piece], f.Piece)
		}
		if p := d.Parents[f.Parent]; load[f.Parent] > p.Slots-max(p.InFlight, 0) {
			return fmt.Errorf("%d requests to parent %d with %d of %d slots in use", load[f.Parent], f.Parent, p.InFlight, p.Slots)
		}
	}
	if len(fetches) > 0 && busy > d.MaxInFlight {
		return fmt.Errorf("%d requests under way, at most %d", busy, d.MaxInFlight)
	}
	return nil
}

func set(pieces ...int) task.Set {
	s := task.NewSet(128)
	for _, p := range pieces {
		s.Add(p)
	}
	return s
}

// parent returns a local parent with two slots.
func parent(rate float64, pieces ...int) Parent {
	return Parent{Has: set(pieces...), Slots: 2, Rate: rate}
}

func with(p Parent, change func(*Parent)) Parent {
	change(&p)
	return p
}

func TestNext(t *testing.T) {
	seed := func(p *Parent) { p.Seed = true }
	foreign := func(p *Parent) { p.Foreign = true }
	paused := func(p *Parent) { p.Paused = true }
	busy := func(p *Parent) { p.InFlight = 2 }
	tests := []struct {
		name   string
		change func(*Download)
		want   []Fetch
	}{
		{"nothing without parents", func(d *Download) { d.Parents = nil }, nil},
		{"one request a piece, within slots and requests", func(d *Download) {
			d.Wanted = set(1, 2)
		}, []Fetch{{Piece: 2, Parent: 1}, {Piece: 1, Parent: 0}}},
		{"held and unknown pieces are left", func(d *Download) {
			d.Wanted, d.Held, d.Known = set(1, 2, 3), set(2), set(1, 2)
		}, []Fetch{{Piece: 1}}},
		{"urgent before rare", func(d *Download) {
			d.Urgent, d.MaxInFlight = []int{3, 1}, 3
		}, []Fetch{{Piece: 3, Parent: 0}, {Piece: 1, Parent: 0}, {Piece: 2, Parent: 1}}},
		{"in order before rare", func(d *Download) {
			d.Parents = []Parent{parent(0, 0, 1, 2, 3), parent(0, 3), parent(0, 3)}
			d.Cursors, d.Window, d.MaxInFlight = []int{1}, 2, 2
		}, []Fetch{{Piece: 1}, {Piece: 2}}},
		{"windows of several readers in turn", func(d *Download) {
			d.Parents = []Parent{with(parent(0, 0, 1, 2, 3), func(p *Parent) { p.Slots = 9 })}
			d.Cursors, d.Window, d.MaxInFlight = []int{2, 0}, 2, 3
		}, []Fetch{{Piece: 2}, {Piece: 0}, {Piece: 3}}},
		{"rarest first", func(d *Download) {
			d.Parents = []Parent{parent(0, 1, 2), parent(0, 1, 2, 3), parent(0, 1, 3)}
			d.Parents[0].Slots, d.Wanted, d.MaxInFlight = 0, set(1, 2), 1
		}, []Fetch{{Piece: 2, Parent: 1}}},
		{"other peers before the supernode", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(9, 1), seed), parent(1, 1)}
		}, []Fetch{{Piece: 1, Parent: 1}}},
		{"the supernode if the others are busy", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(9, 1), seed), with(parent(1, 1), busy)}
		}, []Fetch{{Piece: 1, Parent: 0}}},
		{"the least loaded parent", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(9, 1), func(p *Parent) { p.InFlight = 1 }), parent(1, 1)}
		}, []Fetch{{Piece: 1, Parent: 1}}},
		{"the fastest of equals", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{parent(1, 1), parent(3, 1), parent(2, 1)}
		}, []Fetch{{Piece: 1, Parent: 1}}},
		{"not a paused parent", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(1, 1), paused)}
		}, nil},
		{"imports keep to the share", func(d *Download) {
			d.Wanted, d.Parents, d.Share = set(1, 2), []Parent{with(parent(1, 1, 2), foreign)}, Share{Slot: 0, Of: 2}
		}, []Fetch{{Piece: 2}}},
		{"starved downloads import anything", func(d *Download) {
			d.Wanted, d.Parents, d.Share = set(1), []Parent{with(parent(1, 1), foreign)}, Share{Slot: 0, Of: 2}
			d.Starved = true
		}, []Fetch{{Piece: 1}}},
		{"no import of what the zone has", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(1, 1), foreign), with(parent(1, 1), busy)}
		}, nil},
		{"offers are not bound by the share", func(d *Download) {
			d.Wanted, d.Share = set(1), Share{Slot: 0, Of: 2}
			d.Parents = []Parent{with(with(parent(1, 1), foreign), seed)}
		}, []Fetch{{Piece: 1}}},
		{"a stuck piece goes to another parent at once", func(d *Download) {
			d.Parents = []Parent{parent(0, 1), with(parent(0, 1, 2), func(p *Parent) { p.Slots = 1 })}
			d.Wanted, d.Fetching = set(1, 2, 3), []Fetching{{Piece: 1, Parent: 0, Stuck: true}}
		}, []Fetch{{Piece: 1, Parent: 1, Duplicate: true}}},
		{"a stuck piece nobody else has is waited for", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{parent(0, 1), parent(0, 2)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0, Stuck: true}}
		}, nil},
		{"two requests for a piece at most", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{parent(0, 1), parent(0, 1), parent(0, 1)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0, Stuck: true}, {Piece: 1, Parent: 1, Stuck: true}}
		}, nil},
		{"late parents are asked last", func(d *Download) {
			d.Wanted, d.Parents = set(2), []Parent{with(parent(9, 2), func(p *Parent) { p.Slots = 8 }), parent(1, 2)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0, Stuck: true}}
		}, []Fetch{{Piece: 2, Parent: 1}}},
		{"endgame: a slow parent's piece again from a fast one", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(1, 1), func(p *Parent) { p.InFlight = 1 }), parent(3, 1)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0}}
		}, []Fetch{{Piece: 1, Parent: 1, Duplicate: true}}},
		{"endgame: the slowest parent's first", func(d *Download) {
			d.Wanted, d.MaxInFlight = set(1, 2), 3
			d.Parents = []Parent{
				with(parent(2, 1), func(p *Parent) { p.InFlight = 1 }),
				with(parent(1, 2), func(p *Parent) { p.InFlight = 1 }),
				parent(9, 1, 2),
			}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0}, {Piece: 2, Parent: 1}}
		}, []Fetch{{Piece: 2, Parent: 2, Duplicate: true}}},
		{"endgame: not for a small gain", func(d *Download) {
			d.Wanted, d.Parents = set(1), []Parent{with(parent(2, 1), func(p *Parent) { p.InFlight = 1 }), parent(3, 1)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0}}
		}, nil},
		{"no endgame while a piece is not to be had", func(d *Download) {
			d.Wanted, d.Parents = set(1, 9), []Parent{with(parent(1, 1), func(p *Parent) { p.InFlight = 1 }), parent(9, 1)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0}}
		}, nil},
		{"no endgame with more missing than slots", func(d *Download) {
			d.Wanted = set(1, 2, 3, 4, 5)
			d.Parents = []Parent{with(parent(1, 1), func(p *Parent) { p.InFlight = 5 }), parent(9, 1)}
			d.Fetching = []Fetching{{Piece: 1}, {Piece: 2}, {Piece: 3}, {Piece: 4}, {Piece: 5}}
		}, nil},
		{"what the supernode offers is not left to a slow parent", func(d *Download) {
			d.Wanted = set(1, 9)
			d.Parents = []Parent{with(parent(1, 1), func(p *Parent) { p.InFlight = 1 }), with(parent(3, 1), seed)}
			d.Fetching = []Fetching{{Piece: 1, Parent: 0}}
		}, []Fetch{{Piece: 1, Parent: 1, Duplicate: true}}},
		{"stuck requests leave room for others", func(d *Download) {
			d.Wanted, d.Parents, d.MaxInFlight = set(2), []Parent{parent(0, 1), parent(0, 2)}, 1
			d.Fetching = []Fetching{{Piece: 1, Parent: 0, Stuck: true}}
		}, []Fetch{{Piece: 2, Parent: 1}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := Download{
				Wanted: set(0, 1, 2, 3), Known: task.FullSet(128), MaxInFlight: 8,
				Parents: []Parent{parent(0, 0, 1, 3), parent(0, 2)},
			}
			test.change(&d)
			got := Next(d)
			if err := checkFetches(d, got); err != nil {
				t.Error(err)
			}
			if !sameFetches(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// sameFetches compares two answers in which pieces of equal rank, ordered by a
// hash, are interchangeable only as a whole.
func sameFetches(got, want []Fetch) bool { return slices.Equal(got, want) }

// Peers that see the same swarm must not all ask for the same piece.
func TestNextDiffersBySeed(t *testing.T) {
	first := map[int]bool{}
	for seed := range uint64(32) {
		d := Download{
			Wanted: task.FullSet(128), Known: task.FullSet(128), MaxInFlight: 1, Seed: seed,
			Parents: []Parent{{Has: task.FullSet(128), Slots: 1}},
		}
		first[Next(d)[0].Piece] = true
	}
	if len(first) < 16 {
		t.Errorf("32 peers ask for only %d different pieces first", len(first))
	}
}

// A table beyond the sample limit is still fetched to the last piece.
func TestNextLargeTable(t *testing.T) {
	const n = 5 * sampleLimit
	d := Download{
		Wanted: task.FullSet(n), Held: task.FullSet(n), Known: task.FullSet(n), Seed: 5, MaxInFlight: 4,
		Parents: []Parent{{Has: task.FullSet(n), Slots: 4}},
	}
	d.Held.Remove(17)
	if got := Next(d); !slices.Equal(got, []Fetch{{Piece: 17}}) {
		t.Errorf("got %v, want piece 17", got)
	}
	d.Held = nil
	if got := Next(d); len(got) != 4 {
		t.Errorf("got %v, want 4 requests", got)
	}
}

func TestCounter(t *testing.T) {
	var c counter
	for i := range 100 {
		c.add(^uint64(0) << min(i, 63)) // piece b occurs b+1 times, piece 63 a hundred times less 63 more
	}
	for bit := range 64 {
		want := min(bit+1, maxCount)
		if got := c.at(bit); got != want {
			t.Errorf("piece %d: counted %d, want %d", bit, got, want)
		}
		for _, n := range []int{0, 1, 5, 31, 32, 62} {
			if got := c.atMost(n)>>bit&1 != 0; got != (want <= n) {
				t.Errorf("piece %d of count %d: atMost(%d) is %v", bit, want, n, got)
			}
		}
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte{0xff, 0xff, 0xff, 3, 2, 8, 0xff, 0x13, 0x0f, 0x21, 0xf0, 0x02, 1, 0, 1, 2})
	f.Add([]byte{0x3f, 0x01, 0x3f, 2, 1, 4, 0x3f, 0x42, 0x3f, 0x81, 2, 0x80, 3, 1, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		d := downloadFrom(data)
		if err := checkFetches(d, Next(d)); err != nil {
			t.Errorf("%v: %+v", err, d)
		}
	})
}

// downloadFrom makes a snapshot of a small task from any bytes.
func downloadFrom(data []byte) Download {
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	pieces := func() task.Set {
		s := make(task.Set, next()%3)
		for w := range s {
			s[w] = uint64(next()) | uint64(next())<<56
		}
		return s
	}
	d := Download{Wanted: pieces(), Held: pieces(), Known: pieces(), MaxInFlight: next()%20 - 2}
	flags := next()
	d.Starved, d.Seed = flags&1 != 0, uint64(flags)
	d.Share = Share{Slot: next()%6 - 1, Of: next()%6 - 1}
	d.Window = next()%10 - 1
	for range next() % 4 {
		d.Cursors = append(d.Cursors, next()-2)
		d.Urgent = append(d.Urgent, next()-2)
	}
	for range next() % 6 {
		bits := next()
		d.Parents = append(d.Parents, Parent{
			Has: pieces(), InFlight: next()%6 - 1, Slots: next()%6 - 1, Rate: float64(next()) - 5,
			Foreign: bits&1 != 0, Seed: bits&2 != 0, Paused: bits&4 != 0,
		})
	}
	seen := map[int]bool{}
	for range next() % 8 {
		f := Fetching{Piece: next() - 2, Parent: next()%8 - 1, Stuck: next()&1 != 0}
		if !seen[f.Piece] {
			d.Fetching = append(d.Fetching, f)
		}
		seen[f.Piece] = true
	}
	return d
}

func BenchmarkNext(b *testing.B) {
	const pieces, parents = 4096, 16
	for _, free := range []int{1, 16} {
		b.Run(fmt.Sprintf("%d free slots", free), func(b *testing.B) {
			d := Download{
				Wanted: task.FullSet(pieces), Held: task.NewSet(pieces), Known: task.FullSet(pieces),
				MaxInFlight: parents, Window: 8, Cursors: []int{0},
			}
			for i := range pieces {
				if mix(uint64(i))%4 == 0 || i < 8 {
					d.Held.Add(i)
				}
			}
			for p := range parents {
				has := task.NewSet(pieces)
				for i := range pieces {
					if mix(uint64(i*parents+p))%2 == 0 {
						has.Add(i)
					}
				}
				in := 1
				if p < free {
					in = 0
				}
				d.Parents = append(d.Parents, Parent{Has: has, Slots: 1, InFlight: in, Rate: 1e6})
			}
			for i := range parents - free {
				d.Fetching = append(d.Fetching, Fetching{Piece: 100 + i, Parent: parents - 1 - i})
			}
			b.ReportAllocs()
			for b.Loop() {
				if len(Next(d)) == 0 {
					b.Fatal("nothing to fetch")
				}
			}
		})
	}
}
