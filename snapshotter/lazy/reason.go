package lazy

import (
	"context"
	"errors"
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Why a layer is not mounted lazily: the codes of snapshots.Reason that are given
// here.
const (
	NoLabels     = "no-labels"   // containerd does not say what the layer is
	NoIndex      = "no-index"    // nobody has made an index of the image
	Untrusted    = "untrusted"   // there is one, and nobody vouches for it
	Invalid      = "invalid"     // there is one, and it is broken or another image's
	Unreachable  = "unreachable" // dfdaemon or the registry cannot be asked
	Denied       = "denied"      // the registry does not let this node in
	Late         = "timeout"     // the answer took too long
	OtherLayer   = "other-layer" // the index does not have this layer
	LocalTrouble = "local"       // the node cannot keep what is needed
	Off          = "off"         // lazy mounting is switched off
	NoKeeper     = "keeper"      // nobody would hold the mount over a restart
	NoBackend    = "backend"     // mounts fail on this node
)

// passing reports whether a reason may be gone in a moment: it is not remembered
// for as long as others.
func passing(code string) bool {
	return code == Unreachable || code == LocalTrouble || code == Late
}

func no(code, detail string) snapshots.Decision {
	return snapshots.Decision{Reason: snapshots.Reason{Code: code, Detail: detail}}
}

// reasonOf sorts the errors of a lookup.
func reasonOf(err error) snapshots.Reason {
	code := Unreachable
	var trouble errLocal
	switch {
	case errors.As(err, &trouble):
		code = LocalTrouble
	case errors.Is(err, context.DeadlineExceeded):
		code = Late
	case errors.Is(err, trust.ErrUntrusted):
		code = Untrusted
	case errors.Is(err, artifact.ErrInvalid), errors.Is(err, artifact.ErrMismatch), errors.Is(err, chunkfmt.ErrInvalid), errors.Is(err, merkle.ErrMismatch), errors.Is(err, image.ErrCorrupt):
		code = Invalid
	case errors.Is(err, image.ErrDenied):
		code = Denied
	case errors.Is(err, imageindex.ErrNoIndex), errors.Is(err, image.ErrNotFound), errors.Is(err, image.ErrUnsupported):
		code = NoIndex
	}
	return snapshots.Reason{Code: code, Detail: err.Error()}
}

// errLocal marks errors of the node's own disk.
type errLocal struct{ error }

// Unwrap returns the error.
func (e errLocal) Unwrap() error { return e.error }

func local(what string, err error) error {
	if err == nil {
		return nil
	}
	return errLocal{fmt.Errorf("%s: %w", what, err)}
}
