package build

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
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

// traceMap has the accesses of each clean path in the order of the trace.
type traceMap map[string]ranks

// ranks are the accesses of one file.
type ranks []traced

func newTraceMap(list []Access) (traceMap, error) {
	m := traceMap{}
	for i, a := range list {
		if err := a.check(); err != nil {
			return nil, fmt.Errorf("access %d: %w", i, err)
		}
		key := path.Clean("/" + a.Path)
		m[key] = append(m[key], traced{a, uint32(i) + 1})
	}
	return m, nil
}

func (m traceMap) of(name string) ranks {
	if len(m) == 0 {
		return nil
	}
	return m[path.Clean("/"+name)]
}

// at returns the rank of the first access to the n bytes at off.
func (r ranks) at(off, n int64) uint32 {
	for i := range r {
		a := &r[i]
		if a.Offset < off+n && (a.Length == 0 || a.Offset+a.Length > off) {
			return a.rank
		}
	}
	return 0
}
