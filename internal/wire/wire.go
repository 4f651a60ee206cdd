// Package wire turns the messages of package api into the types the daemons
// compute with, and back. Everything that comes from the network is checked
// here; what passes is within the bounds of the types it becomes.
package wire

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// ErrInvalid is returned for a message that breaks its own rules.
var ErrInvalid = errors.New("invalid message")

// Source says what to distribute and where it comes from.
type Source struct {
	ID         task.ID // "" when the content is known by URL only
	URL        string
	Header     http.Header
	Credential origin.Credential
	Table      *task.Table // nil: the uniform one
}

// Request checks and converts a source.
func Request(s *apiv1.Source) (Source, error) {
	if s == nil {
		return Source{}, fmt.Errorf("%w: no source", ErrInvalid)
	}
	out := Source{URL: s.Url, Header: http.Header{}}
	if s.TaskId != "" {
		id, err := task.ParseID(s.TaskId)
		if err != nil {
			return Source{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		out.ID = id
	}
	u, err := url.Parse(s.Url)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return Source{}, fmt.Errorf("%w: source URL must be an absolute http or https URL", ErrInvalid)
	}
	for _, h := range s.Headers {
		if !validHeader(h.Name, h.Value) {
			return Source{}, fmt.Errorf("%w: source has a malformed header", ErrInvalid)
		}
		out.Header.Add(h.Name, h.Value)
	}
	if c := s.Credential; c != nil {
		out.Credential = origin.Credential{Authorization: c.Authorization, Username: c.Username, Password: c.Password}
	}
	if s.Table != nil {
		table, err := Table(s.Table)
		if err != nil {
			return Source{}, err
		}
		out.Table = &table
	}
	return out, nil
}

// validHeader reports whether a header can be sent: RFC 9110 sections 5.1 and
// 5.5. One that cannot would fail at each attempt, as if the origin were down.
func validHeader(name, value string) bool {
	for _, c := range []byte(name) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return name != ""
}

// FromSource is the inverse of Request.
func FromSource(s Source) *apiv1.Source {
	out := &apiv1.Source{TaskId: string(s.ID), Url: s.URL, Headers: FromHeader(s.Header)}
	if s.Credential != (origin.Credential{}) {
		out.Credential = &apiv1.Credential{
			Authorization: s.Credential.Authorization, Username: s.Credential.Username, Password: s.Credential.Password,
		}
	}
	if s.Table != nil {
		out.Table = FromTable(*s.Table)
	}
	return out
}

// Table checks and converts a piece table.
func Table(t *apiv1.Table) (task.Table, error) {
	if t == nil {
		return task.Table{}, fmt.Errorf("%w: no piece table", ErrInvalid)
	}
	out := task.Table{Length: t.Length, PieceSize: t.PieceSize}
	if t.PieceSize == 0 {
		out.Ends = append([]int64{}, t.Ends...)
	}
	if err := out.Validate(); err != nil {
		return task.Table{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return out, nil
}

// FromTable is the inverse of Table.
func FromTable(t task.Table) *apiv1.Table {
	return &apiv1.Table{Length: t.Length, PieceSize: t.PieceSize, Ends: t.Ends}
}

// Digests splits the digests of consecutive pieces.
func Digests(d *apiv1.Digests, pieces int) (first int, digests []task.Digest, err error) {
	const size = len(task.Digest{})
	n := len(d.Digests) / size
	if len(d.Digests)%size != 0 || uint64(d.First)+uint64(n) > uint64(pieces) { // #nosec G115 -- both are counts
		return 0, nil, fmt.Errorf("%w: digests of %d bytes from piece %d of %d", ErrInvalid, len(d.Digests), d.First, pieces)
	}
	digests = make([]task.Digest, n)
	for i := range digests {
		copy(digests[i][:], d.Digests[i*size:])
	}
	return int(d.First), digests, nil
}

// Header converts a list of headers.
func Header(list []*apiv1.Header) http.Header {
	h := http.Header{}
	for _, x := range list {
		h.Add(x.Name, x.Value)
	}
	return h
}

// FromHeader is the inverse of Header.
func FromHeader(h http.Header) []*apiv1.Header {
	var list []*apiv1.Header
	for name, values := range h {
		for _, v := range values {
			list = append(list, &apiv1.Header{Name: name, Value: v})
		}
	}
	return list
}
