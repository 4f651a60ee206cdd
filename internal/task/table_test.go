package task_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

func TestUniform(t *testing.T) {
	const kib, mib, gib = int64(1) << 10, int64(1) << 20, int64(1) << 30
	for _, tc := range []struct {
		name        string
		length      int64
		size        int64
		count, last int64
	}{
		{"empty", 0, 64 * kib, 0, 0},
		{"one byte", 1, 64 * kib, 1, 1},
		{"just below two pieces", 128*kib - 1, 64 * kib, 2, 64*kib - 1},
		{"8 MiB has 128 pieces", 8 * mib, 64 * kib, 128, 64 * kib},
		{"a byte less than 16 MiB", 16*mib - 1, 64 * kib, 256, 64*kib - 1},
		{"16 MiB", 16 * mib, 128 * kib, 128, 128 * kib},
		{"128 MiB", 128 * mib, mib, 128, mib},
		{"4 GiB is the last with 1 MiB", 4 * gib, mib, 4096, mib},
		{"a byte more", 4*gib + 1, 2 * mib, 2049, 1},
		{"16 TiB is the largest", 16 << 40, 4 * gib, 4096, 4 * gib},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := task.Uniform(tc.length)
			if err := table.Validate(); err != nil {
				t.Fatal(err)
			}
			if table.PieceSize != tc.size || int64(table.Count()) != tc.count {
				t.Errorf("%d pieces of %d, want %d of %d", table.Count(), table.PieceSize, tc.count, tc.size)
			}
			if n := table.Count(); n > 0 {
				if _, last := table.Piece(n - 1); last != tc.last {
					t.Errorf("last piece has %d bytes, want %d", last, tc.last)
				}
			}
		})
	}
}

// An origin may claim any length; the answer is an error, not a long wait.
func TestUniformOfAbsurdLength(t *testing.T) {
	for _, length := range []int64{16<<40 + 1, 1 << 50, 1 << 62, math.MaxInt64} {
		if err := task.Uniform(length).Validate(); !errors.Is(err, task.ErrInvalidTable) {
			t.Errorf("Uniform(%d): %v, want ErrInvalidTable", length, err)
		}
	}
}

func TestTableValidate(t *testing.T) {
	for _, tc := range []struct {
		name  string
		table task.Table
		ok    bool
	}{
		{"zero value", task.Table{}, false},
		{"empty uniform", task.Table{PieceSize: 1}, true},
		{"empty variable", task.Table{Ends: []int64{}}, true},
		{"negative length", task.Table{Length: -1, PieceSize: 5}, false},
		{"negative piece size", task.Table{Length: 10, PieceSize: -5}, false},
		{"piece too large", task.Table{Length: 10, PieceSize: task.MaxPieceSize + 1}, false},
		{"as many pieces as allowed", task.Table{Length: 4096 * 3, PieceSize: 3}, true},
		{"too many pieces", task.Table{Length: 4096*3 + 1, PieceSize: 3}, false},
		{"uniform and variable", task.Table{Length: 10, PieceSize: 10, Ends: []int64{10}}, false},
		{"variable", task.Variable([]int64{3, 4, 10}), true},
		{"descending", task.Variable([]int64{3, 2, 10}), false},
		{"an empty piece", task.Variable([]int64{3, 3, 10}), false},
		{"negative end", task.Variable([]int64{-3, 10}), false},
		{"starts with an empty piece", task.Variable([]int64{0, 10}), false},
		{"ends before the length", task.Table{Length: 11, Ends: []int64{3, 10}}, false},
		{"variable piece too large", task.Variable([]int64{task.MaxPieceSize + 1}), false},
		{"too many variable pieces", task.Variable(make([]int64, task.MaxPieces+1)), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.table.Validate()
			if (err == nil) != tc.ok {
				t.Errorf("Validate: %v, want ok %v", err, tc.ok)
			}
			if err != nil && !errors.Is(err, task.ErrInvalidTable) {
				t.Errorf("%v does not match ErrInvalidTable", err)
			}
		})
	}
}

func TestTableSpan(t *testing.T) {
	uniform := task.Table{Length: 25, PieceSize: 10}
	variable := task.Variable([]int64{3, 4, 10, 25})
	for _, tc := range []struct {
		name       string
		table      task.Table
		off, n     int64
		first, end int
	}{
		{"first byte", uniform, 0, 1, 0, 1},
		{"a piece", uniform, 10, 10, 1, 2},
		{"across a border", uniform, 9, 2, 0, 2},
		{"short last piece", uniform, 24, 1, 2, 3},
		{"cut at the end", uniform, 15, 100, 1, 3},
		{"length that overflows", uniform, 15, math.MaxInt64, 1, 3},
		{"beyond the end", uniform, 25, 1, 0, 0},
		{"empty", uniform, 5, 0, 0, 0},
		{"negative offset", uniform, -1, 5, 0, 0},
		{"negative length", uniform, 1, -5, 0, 0},
		{"variable, one byte piece", variable, 3, 1, 1, 2},
		{"variable, several", variable, 2, 5, 0, 3},
		{"variable, all", variable, 0, 25, 0, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if first, end := tc.table.Span(tc.off, tc.n); first != tc.first || end != tc.end {
				t.Errorf("Span(%d, %d) = [%d, %d), want [%d, %d)", tc.off, tc.n, first, end, tc.first, tc.end)
			}
		})
	}
}

func TestTableEqual(t *testing.T) {
	a := task.Variable([]int64{3, 10})
	for _, tc := range []struct {
		name string
		a, b task.Table
		want bool
	}{
		{"same uniform", task.Uniform(99), task.Uniform(99), true},
		{"other length", task.Uniform(99), task.Uniform(98), false},
		{"other size", task.Table{Length: 9, PieceSize: 3}, task.Table{Length: 9, PieceSize: 9}, false},
		{"same variable", a, task.Variable([]int64{3, 10}), true},
		{"other ends", a, task.Variable([]int64{4, 10}), false},
		{"uniform and variable", a, task.Table{Length: 10, PieceSize: 5}, false},
	} {
		if got := tc.a.Equal(tc.b); got != tc.want || tc.b.Equal(tc.a) != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// checkTable states what must hold for every valid table.
func checkTable(t *testing.T, table task.Table) {
	t.Helper()
	next := int64(0)
	for i := range table.Count() {
		off, n := table.Piece(i)
		if off != next || n <= 0 || n > task.MaxPieceSize {
			t.Fatalf("piece %d is [%d, +%d), want it to begin at %d", i, off, n, next)
		}
		next = off + n
		if table.Index(off) != i || table.Index(next-1) != i {
			t.Fatalf("bytes of piece %d belong to %d and %d", i, table.Index(off), table.Index(next-1))
		}
		if first, end := table.Span(off, n); first != i || end != i+1 {
			t.Fatalf("piece %d spans [%d, %d)", i, first, end)
		}
	}
	if next != table.Length {
		t.Fatalf("pieces end at %d of %d", next, table.Length)
	}
	if first, end := table.Span(0, table.Length); first != 0 || end != table.Count() {
		t.Fatalf("the whole spans [%d, %d) of %d", first, end, table.Count())
	}
}

func FuzzTable(f *testing.F) {
	f.Add(int64(0), int64(1), []byte(nil))
	f.Add(int64(25), int64(10), []byte(nil))
	f.Add(int64(14), int64(0), []byte{3, 1, 10})
	f.Add(int64(math.MaxInt64), int64(task.MaxPieceSize), []byte(nil))
	f.Add(int64(-1), int64(-1), []byte{0})
	f.Fuzz(func(t *testing.T, length, size int64, lengths []byte) {
		table := task.Table{Length: length, PieceSize: size}
		if len(lengths) > 0 {
			table.Ends = []int64{}
			end := int64(0)
			for _, n := range lengths {
				end += int64(int8(n)) // wraps around: some pieces end before they begin
				table.Ends = append(table.Ends, end)
			}
		}
		uniform := task.Uniform(max(length, 0))
		if uniform.Validate() == nil {
			checkTable(t, uniform)
		}
		if table.Validate() == nil {
			checkTable(t, table)
		}
	})
}

func TestVariableKeepsItsEnds(t *testing.T) {
	ends := []int64{1, 5, 9}
	table := task.Variable(ends)
	if table.Length != 9 || !slices.Equal(table.Ends, ends) {
		t.Errorf("got %+v", table)
	}
	checkTable(t, table)
}
