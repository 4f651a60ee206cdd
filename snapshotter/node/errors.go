package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

var (
	// ErrUnreachable says that the daemon does not answer: it is not running, or
	// went away during the call.
	ErrUnreachable = errors.New("dfdaemon is not reachable")
	// ErrNotFound says that the repository does not have the blob.
	ErrNotFound = errors.New("not found")
	// ErrDenied says that the registry, or the daemon's list of registries, does
	// not let this node read the repository.
	ErrDenied = errors.New("access denied")
	// ErrDamaged says that what is in the registry is not what its digest says,
	// or shorter than asked for.
	ErrDamaged = errors.New("damaged content")
	// ErrFull says that the daemon has no room for the content.
	ErrFull = errors.New("the daemon's cache is full")

	errInUse = errors.New("in use")
)

// Permanent reports whether asking the same of the daemon again soon is of no
// use.
func Permanent(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) || errors.Is(err, ErrDamaged)
}

// failure is an error of the daemon with its class; class may be nil.
type failure struct {
	class   error
	message string
}

// Error returns the class and the daemon's message.
func (f *failure) Error() string {
	if f.class == nil {
		return f.message
	}
	return fmt.Sprintf("%v: %s", f.class, f.message)
}

// Unwrap returns the class.
func (f *failure) Unwrap() error { return f.class }

// maxMessage bounds what of the daemon's message is kept, in bytes.
const maxMessage = 1 << 10

// classify turns the error of a call into one of this package's.
func classify(ctx context.Context, err error, a *answer) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	f := &failure{message: st.Message()}
	if len(f.message) > maxMessage {
		f.message = f.message[:maxMessage] + "…"
	}
	switch st.Code() {
	case codes.NotFound:
		f.class = ErrNotFound
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		f.class = ErrDenied
	case codes.DataLoss, codes.OutOfRange:
		f.class = ErrDamaged
	case codes.ResourceExhausted:
		f.class = ErrFull
	case codes.FailedPrecondition:
		f.class = errInUse
	case codes.Unavailable, codes.Canceled:
		if !a.came.Load() {
			f.class = ErrUnreachable
		}
	}
	return f
}

// answer tells whether a call got its status from the daemon, or from gRPC
// because the connection broke: the codes do not.
type answer struct{ came atomic.Bool }

type answerKey struct{}

// watch returns a context for one call, and whether that was answered.
func watch(ctx context.Context) (context.Context, *answer) {
	a := &answer{}
	return context.WithValue(ctx, answerKey{}, a), a
}

// answers is a stats.Handler that sees answers come.
type answers struct{}

// TagRPC does nothing.
func (answers) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC notes the end of a call as the server sent it.
func (answers) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.InTrailer); !ok {
		return
	}
	if a, ok := ctx.Value(answerKey{}).(*answer); ok {
		a.came.Store(true)
	}
}

// TagConn does nothing.
func (answers) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (answers) HandleConn(context.Context, stats.ConnStats) {}
