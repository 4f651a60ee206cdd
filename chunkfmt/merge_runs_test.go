package chunkfmt

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestExtendRunIsExtend(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		var runs, want []Run
		for range 4 {
			run := Run{Chunk: r.Uint32N(3), Count: 1 + r.Uint32N(3)}
			run.Repeat = run.Count > 1 && r.IntN(2) == 0
			runs = extendRun(runs, 0, run)
			for i := range run.Count {
				if run.Repeat {
					i = 0
				}
				want = extend(want, 0, run.Chunk+i)
			}
		}
		if !slices.Equal(runs, want) {
			t.Fatalf("got %v, want %v", runs, want)
		}
	}
}
