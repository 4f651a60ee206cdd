package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// The list of all tasks with their piece tables is the largest message.
const maxMessage = 256 << 20

// ErrNotRunning says that nobody listens on a daemon's socket.
var ErrNotRunning = errors.New("is not running")

// Endpoint is the socket of a daemon of this node.
type Endpoint struct {
	Program, Socket string
	// Flag and Env name the flag and the variable that name the socket.
	Flag, Env string
	// Start says how to start the daemon.
	Start string
}

// Connect connects to the daemon. The caller closes the connection.
func (e Endpoint) Connect(ctx context.Context) (*grpc.ClientConn, error) {
	// gRPC reports a missing socket only with the first call, in its own
	// words, and not distinguishable from an origin that is unavailable.
	probe, err := (&net.Dialer{}).DialContext(ctx, "unix", e.Socket)
	if err != nil {
		return nil, e.unreachable(ctx, err)
	}
	if err := probe.Close(); err != nil {
		return nil, e.unreachable(ctx, err)
	}
	conn, err := grpc.NewClient("passthrough:///"+e.Program,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket)
		}))
	if err != nil {
		return nil, fmt.Errorf("set up the connection to %s at %s: %w", e.Program, e.Socket, err)
	}
	return conn, nil
}

func (e Endpoint) unreachable(ctx context.Context, err error) error {
	socket := output.Clean(e.Socket)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("reach %s at %s: %w", e.Program, socket, ctx.Err())
	case errors.Is(err, fs.ErrPermission):
		return exit.With(exit.Refused, fmt.Errorf("no permission to use %s's socket %s: run this with sudo or as %[1]s's user", e.Program, socket))
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %w: there is no socket %s; start it (%s), or name its socket by --%s or %s", e.Program, ErrNotRunning, socket, e.Start, e.Flag, e.Env)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s %w: nobody listens on its socket %s; start it (%s)", e.Program, ErrNotRunning, socket, e.Start)
	}
	return fmt.Errorf("reach %s at %s: %w", e.Program, socket, err)
}

// Explain turns the error of a call into a sentence. Doing says what the call
// was to do with which object, such as "remove sha256:12…". When ctx, that of
// the call, has ended, the result wraps its error.
func (e Endpoint) Explain(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	message := output.Clean(st.Message())
	switch st.Code() {
	case codes.NotFound:
		return exit.With(exit.NotFound, fmt.Errorf("%s: not found: %s", doing, message))
	case codes.PermissionDenied, codes.Unauthenticated:
		return exit.With(exit.Refused, fmt.Errorf("%s: access refused: %s", doing, message))
	case codes.DataLoss:
		return exit.With(exit.Mismatch, fmt.Errorf("%s: the content does not match its digest: %s", doing, message))
	case codes.Unavailable:
		return fmt.Errorf("%s: not available now: %s; try again later", doing, message)
	case codes.ResourceExhausted:
		return fmt.Errorf("%s: a limit is reached: %s", doing, message)
	case codes.DeadlineExceeded:
		if _, limited := ctx.Deadline(); limited { // the daemon knows it, too, and may be first
			return fmt.Errorf("%s: %w", doing, context.DeadlineExceeded)
		}
		return fmt.Errorf("%s: no answer in time: %s", doing, message)
	case codes.OutOfRange:
		return fmt.Errorf("%s: the content is shorter than expected: %s", doing, message)
	case codes.Unimplemented:
		return fmt.Errorf("%s: %s at %s does not offer this; is it older than dfctl?", doing, e.Program, output.Clean(e.Socket))
	}
	return fmt.Errorf("%s: %s", doing, message)
}
