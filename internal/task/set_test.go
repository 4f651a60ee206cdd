package task_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

func TestSet(t *testing.T) {
	s := task.NewSet(130)
	for _, i := range []int{0, 63, 64, 129} {
		s.Add(i)
	}
	if got := slices.Collect(s.All()); !slices.Equal(got, []int{0, 63, 64, 129}) || s.Len() != 4 {
		t.Errorf("holds %v, %d pieces", got, s.Len())
	}
	c := s.Clone()
	c.Remove(63)
	if !s.Has(63) || c.Has(63) {
		t.Error("a clone is not independent")
	}
	for _, i := range []int{-1, -64, -65, 192, 1 << 40} {
		s.Remove(i)
		if s.Has(i) {
			t.Errorf("has %d", i)
		}
	}
	if s.Len() != 4 {
		t.Error("removing what is not in the set changed it")
	}
	for i := range s.All() {
		if i == 63 {
			break
		}
	}
	var zero task.Set
	if zero.Has(0) || zero.Len() != 0 || zero.Clone().Len() != 0 {
		t.Error("the zero value is not empty")
	}
}

func TestAddRange(t *testing.T) {
	const n = 200
	for first := 0; first <= n; first += 7 {
		for end := 0; end <= n; end += 9 {
			got, want := task.NewSet(n), task.NewSet(n)
			got.AddRange(first, end)
			for i := first; i < end; i++ {
				want.Add(i)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("AddRange(%d, %d) = %v", first, end, slices.Collect(got.All()))
			}
		}
	}
	for _, n := range []int{0, 1, 63, 64, 65, 128} {
		if got := task.FullSet(n).Len(); got != n {
			t.Errorf("FullSet(%d) has %d pieces", n, got)
		}
	}
}

func TestParseSet(t *testing.T) {
	for _, tc := range []struct {
		name string
		b    []byte
		n    int
		ok   bool
	}{
		{"empty", nil, 0, true},
		{"of no pieces, with bytes", make([]byte, 8), 0, false},
		{"one word", []byte{0x05, 0, 0, 0, 0, 0, 0, 0}, 3, true},
		{"piece beyond the last", []byte{0x08, 0, 0, 0, 0, 0, 0, 0}, 3, false},
		{"full word", bytes.Repeat([]byte{0xff}, 8), 64, true},
		{"too short", make([]byte, 7), 3, false},
		{"too long", make([]byte, 16), 3, false},
	} {
		s, err := task.ParseSet(tc.b, tc.n)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v, want ok %v", tc.name, err, tc.ok)
		}
		if err == nil && !bytes.Equal(s.Bytes(), tc.b) {
			t.Errorf("%s: written as %x", tc.name, s.Bytes())
		}
	}
}

func FuzzParseSet(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Add(bytes.Repeat([]byte{0xff}, 16), 128)
	f.Add(bytes.Repeat([]byte{0xff}, 16), 127)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > task.MaxPieces {
			return
		}
		s, err := task.ParseSet(b, n)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Bytes(), b) {
			t.Fatalf("%x is written as %x", b, s.Bytes())
		}
		count := 0
		for i := range s.All() {
			if i >= n || !s.Has(i) {
				t.Fatalf("piece %d of %d", i, n)
			}
			count++
		}
		if count != s.Len() {
			t.Fatalf("%d pieces, Len says %d", count, s.Len())
		}
	})
}
