// Package daemon reaches the dfdaemon of this node.
//
// Its socket is --dfdaemon, else DAMSELFLY_DFDAEMON, else DefaultSocket. Dial
// finds out at once whether a daemon listens there; it never waits for one to
// start. Errors of calls become sentences by Client.Explain, with the exit
// codes of package exit.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

const (
	// DefaultSocket is where dfdaemon listens by default.
	DefaultSocket = "/run/damselfly/dfdaemon.sock"
	// EnvSocket names the environment variable with the socket.
	EnvSocket = "DAMSELFLY_DFDAEMON"

	// The list of all tasks with their piece tables is the largest message.
	maxMessage = 256 << 20
)

// Target says where the daemon is.
type Target struct{ Socket string }

// AddFlag adds --dfdaemon to a command.
func (t *Target) AddFlag(fs *pflag.FlagSet, getenv func(string) string) {
	t.Socket = DefaultSocket
	if s := getenv(EnvSocket); s != "" {
		t.Socket = s
	}
	fs.StringVar(&t.Socket, "dfdaemon", t.Socket, "`SOCKET` of this node's dfdaemon; also "+EnvSocket)
}

// Client is a connection to the daemon. The caller closes it.
type Client struct {
	apiv1.NodeClient

	conn   *grpc.ClientConn
	socket string
}

// Dial connects to the daemon.
func (t Target) Dial(ctx context.Context) (*Client, error) {
	// gRPC reports a missing socket only with the first call, in its own
	// words, and not distinguishable from an origin that is unavailable.
	probe, err := (&net.Dialer{}).DialContext(ctx, "unix", t.Socket)
	if err != nil {
		return nil, t.unreachable(ctx, err)
	}
	if err := probe.Close(); err != nil {
		return nil, t.unreachable(ctx, err)
	}
	conn, err := grpc.NewClient("passthrough:///dfdaemon",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", t.Socket)
		}))
	if err != nil {
		return nil, fmt.Errorf("set up the connection to dfdaemon at %s: %w", t.Socket, err)
	}
	return &Client{NodeClient: apiv1.NewNodeClient(conn), conn: conn, socket: t.Socket}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (t Target) unreachable(ctx context.Context, err error) error {
	socket := output.Clean(t.Socket)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("reach dfdaemon at %s: %w", socket, ctx.Err())
	case errors.Is(err, fs.ErrPermission):
		return exit.With(exit.Refused, fmt.Errorf("no permission to use dfdaemon's socket %s: run this with sudo or as dfdaemon's user", socket))
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("dfdaemon is not running: there is no socket %s; start it (systemctl start dfdaemon, or dfdaemon --socket %s), or name its socket by --dfdaemon or %s", socket, socket, EnvSocket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("dfdaemon is not running: nobody listens on its socket %s; start it (systemctl start dfdaemon, or dfdaemon --socket %s)", socket, socket)
	}
	return fmt.Errorf("reach dfdaemon at %s: %w", socket, err)
}

// Explain turns the error of a call into a sentence. Doing says what the call
// was to do with which object, such as "remove sha256:12…". When ctx, that of
// the call, has ended, the result wraps its error.
func (c *Client) Explain(ctx context.Context, doing string, err error) error {
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
		return fmt.Errorf("%s: dfdaemon at %s does not offer this; is it older than dfctl?", doing, output.Clean(c.socket))
	}
	return fmt.Errorf("%s: %s", doing, message)
}
