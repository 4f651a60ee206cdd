package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

const (
	mbit200 = 200e6 / 8
	mib     = 1 << 20
)

func swarmOf(n int, change func(i int, node *simNode)) []simNode {
	nodes := make([]simNode, n)
	for i := range nodes {
		if change != nil {
			change(i, &nodes[i])
		}
	}
	return nodes
}

// The time of the last node and what the supernode sends, when all nodes start
// at once, every link has the same rate and so has the origin. One download
// cannot take less than a factor of one.
func TestSwarmTime(t *testing.T) {
	first := func(change func(n *simNode)) func(int, *simNode) {
		return func(i int, n *simNode) {
			if i == 0 {
				change(n)
			}
		}
	}
	slow := first(func(n *simNode) { n.up = mbit200 / 20 })
	hung := first(func(n *simNode) { n.hung = true })
	tests := []struct {
		name   string
		config simConfig
		factor float64 // of the time of one download
		copies float64 // sent by the supernode
	}{
		{"8 nodes", simConfig{pieces: 512, pieceSize: mib, origin: mbit200, nodes: swarmOf(8, nil)}, 1.15, 1.1},
		{"20 nodes in order", simConfig{pieces: 512, pieceSize: mib, origin: mbit200, window: 8, nodes: swarmOf(20, nil)}, 1.15, 1.1},
		{"20 nodes preheated", simConfig{pieces: 512, pieceSize: mib, nodes: swarmOf(20, nil)}, 1.15, 1.1},
		{"8 nodes, one slow", simConfig{pieces: 512, pieceSize: mib, origin: mbit200, window: 8, nodes: swarmOf(8, slow)}, 1.3, 1.1},
		{"8 nodes, one silent", simConfig{pieces: 512, pieceSize: mib, origin: mbit200, window: 8, nodes: swarmOf(8, hung)}, 1.3, 1.1},
		{"2 nodes, one slow", simConfig{pieces: 512, pieceSize: mib, origin: mbit200, window: 8, nodes: swarmOf(2, slow)}, 2, 2},
		{"8 nodes small", simConfig{pieces: 16, pieceSize: 64 << 10, origin: mbit200, nodes: swarmOf(8, nil)}, 4, 1.5},
		{"20 nodes small", simConfig{pieces: 16, pieceSize: 64 << 10, origin: mbit200, nodes: swarmOf(20, nil)}, 4, 1.5},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := test.config
			c.link, c.limit, c.seed = mbit200, 200, 7
			s := newSim(t, c)
			took, err := s.run()
			if err != nil {
				t.Fatal(err)
			}
			size := float64(c.pieces) * c.pieceSize
			factor, copies := took.Seconds()*c.link/size, s.peers[0].sent/size
			t.Logf("%v, %.3f × one download, supernode sent %.3f copies, %d duplicates", took, factor, copies, s.doubled)
			if factor > test.factor || copies > test.copies {
				t.Errorf("time %.3f × one download (at most %.2f), supernode sent %.3f copies (at most %.2f)", factor, test.factor, copies, test.copies)
			}
		})
	}
}

// Each zone imports about one copy, from the supernode, which stands in none of
// them, or from another zone.
func TestSwarmZones(t *testing.T) {
	for _, zones := range []int{2, 3} {
		for _, origin := range []float64{mbit200, 0} {
			t.Run(fmt.Sprintf("%d zones, origin %.0f", zones, origin), func(t *testing.T) {
				s := newSim(t, simConfig{
					pieces: 256, pieceSize: mib, origin: origin, link: mbit200, limit: 200, seed: 3,
					nodes: swarmOf(6*zones, func(i int, n *simNode) { n.zone = fmt.Sprint("zone-", i%zones) }),
				})
				took, err := s.run()
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%v, %.3f × one download, supernode sent %.3f, %d duplicates", took, took.Seconds()*mbit200/256/mib, s.peers[0].sent/256/mib, s.doubled)
				for zone, n := range s.imports {
					t.Logf("%s imported %.3f copies", zone, float64(n)/256)
					if float64(n) > 1.2*256 {
						t.Errorf("%s imported %.3f copies, want at most 1.2", zone, float64(n)/256)
					}
				}
			})
		}
	}
}

// A swarm completes whatever happens in it, as long as somebody who holds each
// piece can be reached: the supernode, or a complete peer.
func TestSwarmAlwaysCompletes(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		c := randomSwarm(rand.New(rand.NewPCG(seed, 2)))
		c.seed = seed
		if _, err := newSim(t, c).run(); err != nil {
			t.Errorf("seed %d: %v (%d nodes, %d pieces, origin %.0f, silent %v)", seed, err, len(c.nodes), c.pieces, c.origin, c.silent)
		}
	}
}

func randomSwarm(r *rand.Rand) simConfig {
	c := simConfig{
		pieces: 1 + r.IntN(80), pieceSize: 256 << 10, link: mbit200, limit: 600,
		origin: []float64{0, mbit200, mbit200 / 10}[r.IntN(3)],
		window: []int{0, 4}[r.IntN(2)],
		silent: r.IntN(4) == 0,
	}
	zones := r.IntN(4)
	c.nodes = swarmOf(1+r.IntN(14), func(_ int, n *simNode) {
		if zones > 0 {
			n.zone = fmt.Sprint("zone-", r.IntN(zones))
			n.rack = fmt.Sprint("rack-", r.IntN(3))
		}
		n.joins = r.Float64() * 2
		if r.IntN(4) == 0 {
			n.leaves = n.joins + r.Float64()*3
		}
		switch r.IntN(8) {
		case 0:
			n.up = mbit200 / 100
		case 1:
			n.hung = true
		case 2:
			n.quarantine = true
		case 3:
			n.seedOnly = !c.silent
		}
	})
	if c.silent {
		c.nodes = append(c.nodes, simNode{holdsAll: true})
	}
	return c
}
