package build

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Access is a read of a part of a file.
type Access struct {
	// Path from the root of the image.
	Path string `json:"path"`
	// Offset and Length in bytes in the file; Length 0 means to its end.
	Offset int64 `json:"offset,omitempty"`
	Length int64 `json:"length,omitempty"`
}

// Bounds of a trace file.
const (
	maxTraceLine = 64 << 10
	maxAccesses  = 1 << 20
)

// ErrTrace is wrapped by the error for a trace that cannot be understood.
var ErrTrace = errors.New("invalid trace")

// ParseTrace reads a trace: each line is a path or a JSON object with the fields
// of Access. Empty lines are left out. A line has at most 64 KiB, a trace at
// most a million.
func ParseTrace(r io.Reader) ([]Access, error) {
	var list []Access
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 4096), maxTraceLine)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if len(list) == maxAccesses {
			return nil, fmt.Errorf("%w: more than %d accesses", ErrTrace, maxAccesses)
		}
		a, err := parseAccess(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, a)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading a trace: %w", err)
	}
	return list, nil
}

func parseAccess(line []byte) (Access, error) {
	a := Access{Path: string(line)}
	if line[0] == '{' {
		a = Access{}
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&a); err != nil {
			return a, fmt.Errorf("%w: %w", ErrTrace, err)
		}
		if d.More() {
			return a, fmt.Errorf("%w: more than one object", ErrTrace)
		}
	}
	return a, a.check()
}

func (a *Access) check() error {
	switch {
	case a.Path == "" || len(a.Path) > chunkfmt.MaxPath || strings.ContainsRune(a.Path, 0):
		return fmt.Errorf("%w: %.80q is no path", ErrTrace, a.Path)
	case a.Offset < 0 || a.Length < 0 || a.Offset > chunkfmt.MaxFileSize || a.Length > chunkfmt.MaxFileSize:
		return fmt.Errorf("%w: %d bytes at %d of %.80q", ErrTrace, a.Length, a.Offset, a.Path)
	}
	return nil
}

// traced is an access and its place in the trace, from 1.
type traced struct {
	Access
	rank uint32
}

// traceMap has the accesses of each clean path, sorted by offset.
type traceMap map[string][]traced

func newTraceMap(list []Access) (traceMap, error) {
	m := traceMap{}
	for i, a := range list {
		if err := a.check(); err != nil {
			return nil, fmt.Errorf("access %d: %w", i, err)
		}
		key := path.Clean("/" + a.Path)
		m[key] = append(m[key], traced{a, uint32(i) + 1})
	}
	for _, l := range m {
		slices.SortStableFunc(l, func(a, b traced) int { return cmp.Compare(a.Offset, b.Offset) })
	}
	return m, nil
}

// of returns what the trace says about a file, or nil.
func (m traceMap) of(name string) *ranks {
	if len(m) == 0 {
		return nil
	}
	l := m[path.Clean("/"+name)]
	if l == nil {
		return nil
	}
	return &ranks{ahead: l}
}

// ranks goes through a file along with the accesses to it.
type ranks struct {
	ahead []traced
	// open has the accesses that have begun, as a heap with the first of the
	// trace on top.
	open accessHeap
}

// at returns the rank of the first access to the n bytes at off, or 0. Offsets
// must not fall from call to call.
func (r *ranks) at(off, n int64) uint32 {
	if r == nil {
		return 0
	}
	for len(r.ahead) > 0 && r.ahead[0].Offset < off+n {
		heap.Push(&r.open, r.ahead[0])
		r.ahead = r.ahead[1:]
	}
	for len(r.open) > 0 {
		if a := &r.open[0]; a.Length == 0 || a.Offset+a.Length > off {
			return a.rank
		}
		heap.Pop(&r.open)
	}
	return 0
}

// accessHeap implements heap.Interface.
type accessHeap []traced

func (h accessHeap) Len() int           { return len(h) }
func (h accessHeap) Less(i, j int) bool { return h[i].rank < h[j].rank }
func (h accessHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for package heap.
func (h *accessHeap) Push(x any) { *h = append(*h, x.(traced)) } //nolint:errcheck // only traced are pushed

// Pop is for package heap.
func (h *accessHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
