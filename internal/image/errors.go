package image

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/damselfly-io/damselfly/internal/origin"
)

var (
	// ErrNotFound says that the source or target answered and does not have the
	// manifest or blob.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt says that content does not match its digest or length, or is
	// not what its media type says.
	ErrCorrupt = errors.New("corrupt content")
	// ErrUnsupported says that something valid is of a kind that cannot be read
	// or written here: a foreign layer, a manifest of schema 1, a ranged read of
	// a directory.
	ErrUnsupported = errors.New("not supported")
	// ErrNoPlatform says that an image has none of the wanted platforms.
	ErrNoPlatform = errors.New("no such platform")
	// ErrDenied says that the registry refused the credential, or its absence.
	ErrDenied = errors.New("permission denied")
)

const messageLimit = 1 << 10

// statusOf turns an answer into an error and ends it.
func statusOf(resp *http.Response) *origin.StatusError {
	se := &origin.StatusError{Status: resp.StatusCode, Header: resp.Header}
	if resp.Request != nil {
		se.Method, se.URL = resp.Request.Method, origin.RedactURL(resp.Request.URL.String())
	}
	if te := (*transport.Error)(nil); errors.As(transport.CheckError(resp), &te) {
		se.Message = diagnosis(te)
	}
	_ = resp.Body.Close() // only read from
	return se
}

// diagnosis is what a registry says in its errors, cut to one short line.
func diagnosis(te *transport.Error) string {
	parts := make([]string, 0, len(te.Errors))
	for _, d := range te.Errors {
		parts = append(parts, strings.TrimPrefix(string(d.Code)+": "+d.Message, ": "))
	}
	return oneLine(strings.Join(parts, "; "), messageLimit)
}

// oneLine makes text from outside fit for a message.
func oneLine(s string, limit int) string {
	s = strings.ToValidUTF8(s[:min(len(s), limit)], "")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// explain adds to an error of a registry what it means. verb and preposition are
// "pull" and "from", or "push" and "to".
func (r *remote) explain(verb, preposition string, err error) error {
	se := (*origin.StatusError)(nil)
	if !errors.As(err, &se) {
		return err
	}
	switch se.Status {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		host := r.repo.RegistryStr()
		return fmt.Errorf("%w: no permission to %s %s %s: log in with docker login %s or skopeo login %s (%w)",
			ErrDenied, verb, preposition, r.repo.Name(), host, host, err)
	}
	return err
}
