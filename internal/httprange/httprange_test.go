package httprange_test

import (
	"errors"
	"math"
	"testing"

	"github.com/damselfly-io/damselfly/internal/httprange"
)

func TestParse(t *testing.T) {
	const size = 10000
	for _, tc := range []struct {
		name, header string
		size         int64
		off, n       int64
		partial      bool
		err          error
	}{
		// Examples of RFC 9110, section 14.1.2.
		{"first 500 bytes", "bytes=0-499", size, 0, 500, true, nil},
		{"second 500 bytes", "bytes=500-999", size, 500, 500, true, nil},
		{"last 500 bytes", "bytes=-500", size, 9500, 500, true, nil},
		{"from 9500", "bytes=9500-", size, 9500, 500, true, nil},
		{"first and last byte", "bytes=0-0,-1", size, 0, size, false, nil},
		{"first, middle and last 1000", "bytes= 0-999, 4500-5499, -1000", size, 0, size, false, nil},

		{"absent", "", size, 0, size, false, nil},
		{"one byte", "bytes=0-0", size, 0, 1, true, nil},
		{"last byte", "bytes=9999-9999", size, 9999, 1, true, nil},
		{"last position beyond the end", "bytes=9000-20000", size, 9000, 1000, true, nil},
		{"all", "bytes=0-", size, 0, size, true, nil},
		{"suffix larger than the content", "bytes=-20000", size, 0, size, true, nil},
		{"space around", "bytes= 5-6 ", size, 5, 2, true, nil},
		{"at the end", "bytes=10000-", size, 0, 0, false, httprange.ErrUnsatisfiable},
		{"beyond the end", "bytes=10001-10002", size, 0, 0, false, httprange.ErrUnsatisfiable},
		{"empty suffix", "bytes=-0", size, 0, 0, false, httprange.ErrUnsatisfiable},
		{"empty content", "bytes=0-", 0, 0, 0, false, httprange.ErrUnsatisfiable},
		{"suffix of empty content", "bytes=-5", 0, 0, 0, false, httprange.ErrUnsatisfiable},
		{"last position beyond 64 bits", "bytes=5-99999999999999999999", size, 5, size - 5, true, nil},
		{"suffix beyond 64 bits", "bytes=-99999999999999999999", size, 0, size, true, nil},
		{"first position beyond 64 bits", "bytes=99999999999999999999-", size, 0, 0, false, httprange.ErrUnsatisfiable},
		{"largest last position", "bytes=0-9223372036854775807", size, 0, size, true, nil},

		{"other unit", "lines=0-5", size, 0, size, false, nil},
		{"no unit", "0-5", size, 0, size, false, nil},
		{"nothing", "bytes=", size, 0, size, false, nil},
		{"dash only", "bytes=-", size, 0, size, false, nil},
		{"no dash", "bytes=5", size, 0, size, false, nil},
		{"backwards", "bytes=6-5", size, 0, size, false, nil},
		{"negative", "bytes=--5", size, 0, size, false, nil},
		{"signed", "bytes=+1-2", size, 0, size, false, nil},
		{"hex", "bytes=0x1-2", size, 0, size, false, nil},
		{"letters", "bytes=a-b", size, 0, size, false, nil},
		{"space inside", "bytes=1 -2", size, 0, size, false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			off, n, partial, err := httprange.Parse(tc.header, tc.size)
			if off != tc.off || n != tc.n || partial != tc.partial || !errors.Is(err, tc.err) {
				t.Errorf("Parse(%q) = [%d, +%d), partial %v, %v; want [%d, +%d), %v, %v",
					tc.header, off, n, partial, err, tc.off, tc.n, tc.partial, tc.err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "bytes=0-0", "bytes=-5", "bytes=5-", "bytes=0-1,2-3", "bytes=9223372036854775807-9223372036854775807"} {
		f.Add(s, int64(10))
	}
	f.Add("bytes=0-", int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		off, n, partial, err := httprange.Parse(header, size)
		switch {
		case err != nil:
			if !errors.Is(err, httprange.ErrUnsatisfiable) {
				t.Fatal(err)
			}
		case off < 0 || n < 0 || off > size || n > size-off:
			t.Fatalf("Parse(%q, %d) = [%d, +%d)", header, size, off, n)
		case partial && n == 0, !partial && (off != 0 || n != size):
			t.Fatalf("Parse(%q, %d) = [%d, +%d), partial %v", header, size, off, n, partial)
		}
	})
}
