package fill

import (
	"reflect"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

func TestDetector(t *testing.T) {
	const kib, limit = int64(1) << 10, int64(8) << 20
	type step struct{ off, n, from, to int64 } // in KiB
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"a single read brings nothing ahead", []step{{0, 4096, 0, 0}}},
		{"small random reads", []step{{0, 4, 0, 0}, {900, 4, 0, 0}, {5000, 4, 0, 0}, {9000, 4, 0, 0}, {2000, 4, 0, 0}}},
		{"the window grows with what was read", []step{
			{0, 128, 0, 0}, {128, 128, 256, 512}, {256, 128, 512, 768}, {384, 128, 768, 1024},
			{512, 512, 1024, 2048}, {1024, 1024, 2048, 4096}, {2048, 2048, 4096, 8192}, {4096, 4096, 8192, 16384},
		}},
		{"the window is bounded, and moved in large steps", []step{
			{0, 8192, 0, 0}, {8192, 1024, 9216, 17408}, {9216, 1024, 0, 0}, {10240, 1024, 0, 0}, {11264, 1024, 0, 0}, {12288, 1024, 17408, 21504},
		}},
		{"several readers at the same time", []step{
			{0, 128, 0, 0}, {100000, 128, 0, 0}, {128, 128, 256, 512}, {100128, 128, 100256, 100512},
		}},
		{"reads that overtake each other", []step{{0, 64, 0, 0}, {128, 64, 0, 0}, {64, 64, 0, 0}, {192, 64, 256, 512}}},
		{"reading the same again", []step{{0, 128, 0, 0}, {0, 128, 0, 0}, {0, 128, 0, 0}}},
		{"small files one after another", []step{{0, 100, 0, 0}, {100, 100, 0, 0}, {200, 100, 300, 600}}},
		{"a jump begins anew", []step{{0, 128, 0, 0}, {128, 128, 256, 512}, {5000, 4, 0, 0}, {5004, 4, 0, 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d detector
			for i, s := range tc.steps {
				from, to := d.access(s.off*kib, s.n*kib, limit)
				if from != s.from*kib || to != s.to*kib {
					t.Errorf("step %d: [%d, %d) KiB, want [%d, %d)", i, from/kib, to/kib, s.from, s.to)
				}
			}
		})
	}
}

func TestDetectorNeverBringsMoreThanWasRead(t *testing.T) {
	var d detector
	var read, brought int64
	for off := int64(0); off < 64<<20; off += 5000 {
		from, to := d.access(off, 5000, 8<<20)
		read += 5000
		brought = max(brought, to)
		if to > from && (to > 2*read || to > off+5000+8<<20) {
			t.Fatalf("after %d bytes read ahead to %d", read, to)
		}
	}
	if brought < 60<<20 {
		t.Errorf("brought to %d only", brought)
	}
}

func TestDetectorForgets(t *testing.T) {
	var d detector
	for i := range int64(1000) {
		d.access(i<<30, 4096, 8<<20)
	}
	if len(d.sequences) != maxSequences {
		t.Errorf("%d sequences", len(d.sequences))
	}
	if d.access(999<<30+4096, 1<<20, 8<<20); d.find(999<<30+4096+1<<20, 1) == nil {
		t.Error("the latest sequence was forgotten")
	}
	if s := d.find(1<<30, 1); s != nil {
		t.Errorf("the oldest sequence is known: %+v", s)
	}
}

// blobOf returns groups of the given stored sizes.
func blobOf(sizes ...uint32) (groups []chunkfmt.Group) {
	var off int64
	for _, n := range sizes {
		groups = append(groups, chunkfmt.Group{Offset: off, Stored: n})
		off += int64(n)
	}
	return groups
}

func TestCoalesce(t *testing.T) {
	groups := blobOf(100, 100, bridge, bridge+1, 100, 100, 900, 100)
	for _, tc := range []struct {
		name   string
		wanted []int
		limit  int64
		want   [][]int
	}{
		{"none", nil, 1000, nil},
		{"one", []int{6}, 100, [][]int{{6}}},
		{"neighbours, in any order", []int{1, 5, 4, 0}, 1000, [][]int{{0, 1}, {4, 5}}},
		{"a small gap", []int{1, 3}, 1 << 20, [][]int{{1, 3}}},
		{"a large gap", []int{2, 4}, 1 << 20, [][]int{{2}, {4}}},
		{"the limit", []int{4, 5, 6, 7}, 1000, [][]int{{4, 5}, {6, 7}}},
		{"larger than the limit", []int{5, 6, 7}, 500, [][]int{{5}, {6}, {7}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := coalesce(groups, tc.wanted, tc.limit); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

func TestBatch(t *testing.T) {
	groups := blobOf(100, 200, 300, 400)
	for _, tc := range []struct{ wanted, front, rest []int }{
		{[]int{3, 0}, []int{3, 0}, nil},
		{[]int{3, 1, 0}, []int{3}, []int{1, 0}},
		{[]int{2, 1, 0}, []int{2, 1}, []int{0}},
		{[]int{3}, []int{3}, nil},
	} {
		if front, rest := batch(groups, tc.wanted, 500); !reflect.DeepEqual(front, tc.front) || !reflect.DeepEqual(rest, tc.rest) {
			t.Errorf("batch(%v) = %v, %v, want %v, %v", tc.wanted, front, rest, tc.front, tc.rest)
		}
	}
	if front, rest := batch(groups, []int{3, 2}, 1); len(front) != 1 || len(rest) != 1 {
		t.Errorf("a group larger than the limit: %v, %v", front, rest)
	}
}

func TestLate(t *testing.T) {
	g := &chunkfmt.Group{Offset: 10 << 20, Stored: 100}
	for _, tc := range []struct {
		name string
		p    place
		want bool
	}{
		{"arriving", place{at: 10<<20 + 1, begun: true}, false},
		{"arriving in the background", place{background: true, at: 10<<20 + 1, begun: true}, false},
		{"next in the background", place{background: true, at: 10 << 20}, true},
		{"soon", place{at: 8 << 20}, false},
		{"far", place{at: 8<<20 - 1}, true},
	} {
		if got := late(tc.p, g); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestSizes(t *testing.T) {
	for s := size(0); s < 56; s++ {
		n := s.bytes()
		if got := sizeOf(n); got != s {
			t.Errorf("size of %d is %d, want %d", n, got, s)
		}
		if got := sizeOf(n + 1); got != s+1 {
			t.Errorf("size of %d is %d, want %d", n+1, got, s+1)
		}
	}
	if got := sizeOf(1); got != 0 {
		t.Errorf("size of 1 is %d", got)
	}
}
