package origin

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// ParseContentRange reads a Content-Range value (RFC 9110, section 14.4) with
// the unit bytes. Total is -1 for "*". The form of an unsatisfied range,
// "bytes */total", gives first and last -1. Anything else, white space and
// signs included, is an error.
func ParseContentRange(s string) (first, last, total int64, err error) {
	bad := func() (int64, int64, int64, error) {
		return 0, 0, 0, fmt.Errorf("invalid Content-Range %q", clip(s))
	}
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	span, size, ok := strings.Cut(rest, "/")
	if !ok {
		return bad()
	}
	total = -1
	if size != "*" {
		if total, ok = parseDigits(size); !ok {
			return bad()
		}
	}
	if span == "*" {
		if total < 0 {
			return bad()
		}
		return -1, -1, total, nil
	}
	from, to, _ := strings.Cut(span, "-")
	first, ok1 := parseDigits(from)
	last, ok2 := parseDigits(to)
	// The last possible byte has no successor, which callers compute.
	if !ok1 || !ok2 || first > last || last == math.MaxInt64 || (total >= 0 && last >= total) {
		return bad()
	}
	return first, last, total, nil
}

// formatRange returns the Range value for [off, end), or [off, …) if end < 0.
func formatRange(off, end int64) string {
	s := "bytes=" + strconv.FormatInt(off, 10) + "-"
	if end >= 0 {
		s += strconv.FormatInt(end-1, 10)
	}
	return s
}

// span is the part of an object that an answer carries: n bytes from start, n
// -1 if only the end of the answer will tell.
type span struct{ start, n int64 }

// readSpan checks an answer to a request for [off, end), end -1 for the rest,
// and returns what it carries and the length of the whole.
func readSpan(resp *http.Response, off, end int64) (span, int64, error) {
	if err := checkCoding(resp); err != nil {
		return span{}, 0, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return span{0, resp.ContentLength}, resp.ContentLength, nil
	case http.StatusPartialContent:
		return readPartial(resp, off, end)
	}
	return span{}, 0, fmt.Errorf("%w: status %d to a GET of %s", ErrBadAnswer, resp.StatusCode, RedactURL(resp.Request.URL.String()))
}

func readPartial(resp *http.Response, off, end int64) (span, int64, error) {
	value := resp.Header.Get("Content-Range")
	bad := func(why string) (span, int64, error) {
		return span{}, 0, fmt.Errorf("%w: Content-Range %q to %q of %s: %s", ErrBadAnswer, clip(value), formatRange(off, end),
			RedactURL(resp.Request.URL.String()), why)
	}
	first, last, total, err := ParseContentRange(value)
	switch {
	case err != nil:
		return bad("malformed")
	case first != off:
		return bad("begins elsewhere")
	case end >= 0 && last >= end:
		return bad("ends beyond")
	// Only the object's own end may cut a range, and only an origin that does
	// not know that end may leave it open.
	case total >= 0 && last != total-1 && last != end-1:
		return bad("ends early")
	}
	n := last - first + 1
	if resp.ContentLength >= 0 && resp.ContentLength != n {
		return bad("Content-Length " + strconv.FormatInt(resp.ContentLength, 10))
	}
	return span{first, n}, total, nil
}
