package scheduler

import (
	"fmt"
	"slices"
	"testing"
)

// cluster makes peers named after zone, rack and number.
func cluster(zones, racks, each int) []Peer {
	var out []Peer
	for z := range zones {
		for r := range racks {
			for i := range each {
				p := Peer{Zone: fmt.Sprint("z", z), Rack: fmt.Sprint("r", r)}
				p.Name = fmt.Sprintf("%s-%s-%d", p.Zone, p.Rack, i)
				out = append(out, p)
			}
		}
	}
	return out
}

func TestParents(t *testing.T) {
	inZone := func(p Peer) bool { return p.Zone == "z0" }
	inRack := func(p Peer) bool { return p.Zone == "z0" && p.Rack == "r0" }
	otherRack := func(p Peer) bool { return p.Zone == "z0" && p.Rack != "r0" }
	complete := func(p Peer) bool { return p.Complete }
	type count struct {
		what        string
		of          func(Peer) bool
		least, most int
	}
	tests := []struct {
		name   string
		peers  []Peer
		change func(i int, p *Peer)
		limit  int
		total  int
		counts []count
	}{
		{name: "no limit, no parents", peers: cluster(1, 1, 5), limit: 0},
		{name: "alone", peers: cluster(1, 1, 1), limit: 8},
		{name: "all of a few", peers: cluster(1, 1, 5), limit: 8, total: 4},
		{name: "zone first, a quarter beyond", peers: cluster(2, 1, 40), limit: 16, total: 16,
			counts: []count{{"own zone", inZone, 12, 12}}},
		{name: "a single parent is of the zone", peers: cluster(2, 1, 4), limit: 1, total: 1,
			counts: []count{{"own zone", inZone, 1, 1}}},
		{name: "other zones fill up", peers: cluster(3, 1, 4), limit: 8, total: 8,
			counts: []count{{"own zone", inZone, 3, 3}}},
		{name: "a third from other racks", peers: cluster(1, 2, 40), limit: 12, total: 12,
			counts: []count{{"own rack", inRack, 8, 8}, {"other racks", otherRack, 4, 4}}},
		{name: "other racks fill up", peers: cluster(1, 10, 2), limit: 12, total: 12,
			counts: []count{{"own rack", inRack, 1, 1}, {"other racks", otherRack, 11, 11}}},
		{name: "own rack fills up", peers: append(cluster(1, 1, 20), Peer{Name: "x", Zone: "z0", Rack: "r1"}), limit: 12, total: 12,
			counts: []count{{"own rack", inRack, 11, 11}, {"other racks", otherRack, 1, 1}}},
		{name: "a quarter complete", peers: cluster(1, 1, 200), limit: 12, total: 12,
			change: func(i int, p *Peer) { p.Complete = i >= 190 },
			counts: []count{{"complete", complete, 3, 6}}},
		{name: "no quarantined peers", peers: cluster(1, 1, 10), limit: 16, total: 4,
			change: func(i int, p *Peer) { p.Quarantined = i > 4 }},
		{name: "none twice", peers: append(cluster(1, 1, 5), cluster(1, 1, 5)...), limit: 16, total: 4},
		{name: "loaded peers last", peers: cluster(1, 1, 21), limit: 10, total: 10,
			change: func(i int, p *Peer) { p.Children = 30 * (i % 2) },
			counts: []count{{"loaded", func(p Peer) bool { return p.Children > 0 }, 0, 0}}},
		{name: "negative claims", peers: cluster(1, 1, 5), limit: 3, total: 3,
			change: func(_ int, p *Peer) { p.Children, p.Held = -5, -5 }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			byName := map[string]Peer{}
			for i := range test.peers {
				if test.change != nil {
					test.change(i, &test.peers[i])
				}
				byName[test.peers[i].Name] = test.peers[i]
			}
			self := test.peers[0]
			got := Parents("sha256:a", self, test.peers, test.limit)
			if len(got) != test.total {
				t.Fatalf("%d parents %v, want %d", len(got), got, test.total)
			}
			if slices.Contains(got, self.Name) {
				t.Error("self is its own parent")
			}
			for _, c := range test.counts {
				n := 0
				for _, name := range got {
					if c.of(byName[name]) {
						n++
					}
				}
				if n < c.least || n > c.most {
					t.Errorf("%d of %s, want %d to %d: %v", n, c.what, c.least, c.most, got)
				}
			}
			slices.Reverse(test.peers)
			if again := Parents("sha256:a", self, test.peers, test.limit); !slices.Equal(got, again) {
				t.Errorf("the order of candidates matters: %v and %v", got, again)
			}
		})
	}
}

func TestParentsWithoutZone(t *testing.T) {
	got := Parents("sha256:a", Peer{Name: "self"}, cluster(3, 3, 3), 9)
	if len(got) != 9 {
		t.Errorf("got %v, want 9 parents", got)
	}
}

// What the parents of all peers make together is one connected graph in which
// nobody is far from anybody, also across zones and racks.
func TestParentsConnect(t *testing.T) {
	const limit = 12
	for _, peers := range [][]Peer{cluster(1, 1, 1500), cluster(3, 10, 40), cluster(50, 3, 6), cluster(1, 200, 5)} {
		children := map[string][]string{}
		for _, p := range peers {
			for _, parent := range Parents("sha256:a", p, peers, limit) {
				children[parent] = append(children[parent], p.Name)
			}
		}
		depth := map[string]int{peers[0].Name: 0}
		deepest := 0
		for queue := []string{peers[0].Name}; len(queue) > 0; queue = queue[1:] {
			for _, c := range children[queue[0]] {
				if _, ok := depth[c]; !ok {
					depth[c] = depth[queue[0]] + 1
					deepest = max(deepest, depth[c])
					queue = append(queue, c)
				}
			}
		}
		if len(depth) != len(peers) {
			t.Errorf("%d of %d peers are reached from one", len(depth), len(peers))
		}
		if deepest > 8 {
			t.Errorf("a piece takes %d steps through %d peers", deepest, len(peers))
		}
		for name, c := range children {
			if len(c) > 5*limit {
				t.Errorf("%s has %d children", name, len(c))
			}
		}
	}
}

// One peer more changes few parents.
func TestParentsAreStable(t *testing.T) {
	peers := cluster(1, 1, 300)
	before := Parents("sha256:a", peers[0], peers[:299], 16)
	after := Parents("sha256:a", peers[0], peers, 16)
	kept := 0
	for _, p := range before {
		if slices.Contains(after, p) {
			kept++
		}
	}
	if kept < 15 {
		t.Errorf("%d of 16 parents kept after one peer joined", kept)
	}
	if other := Parents("sha256:b", peers[0], peers, 16); slices.Equal(after, other) {
		t.Error("two tasks have the same graph")
	}
}
