// Package httprange reads the Range header of requests for single ranges of
// bytes.
package httprange

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// ErrUnsatisfiable says that the range begins beyond the end.
var ErrUnsatisfiable = errors.New("range begins beyond the end")

// Parse reads a Range header for content of the given size. A header that
// is absent, malformed, in another unit or of several ranges is ignored, as RFC
// 9110 section 14.2 allows: all is then served. partial says that it was not.
func Parse(header string, size int64) (off, n int64, partial bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, size, false, nil
	}
	if first == "" { // the last bytes
		k, err := parseOffset(last)
		switch {
		case err != nil:
			return 0, size, false, nil //nolint:nilerr // malformed is ignored
		case k == 0 || size == 0:
			return 0, 0, false, ErrUnsatisfiable
		}
		k = min(k, size)
		return size - k, k, true, nil
	}
	off, err = parseOffset(first)
	if err != nil {
		return 0, size, false, nil //nolint:nilerr // malformed is ignored
	}
	end := size - 1
	if last != "" {
		e, err := parseOffset(last)
		if err != nil || e < off {
			return 0, size, false, nil //nolint:nilerr // malformed is ignored
		}
		end = min(end, e)
	}
	if off >= size {
		return 0, 0, false, ErrUnsatisfiable
	}
	return off, end - off + 1, true, nil
}

// parseOffset reads digits. A number beyond any content is as good as the
// largest.
func parseOffset(s string) (int64, error) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, strconv.ErrSyntax
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt64, nil
	}
	return n, err
}
