// Package daemon reaches the daemons of this node: dfdaemon by Target, and the
// snapshotter by Snapshotter.
//
// The socket of dfdaemon is --dfdaemon, else DAMSELFLY_DFDAEMON, else
// DefaultSocket; the snapshotter's is found alike. Dial finds out at once
// whether a daemon listens there (else the error wraps ErrNotRunning); it never
// waits for one to start. Errors of calls become sentences by Explain, with the
// exit codes of package exit.
package daemon

import (
	"context"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

const (
	// DefaultSocket is where dfdaemon listens by default.
	DefaultSocket = "/run/damselfly/dfdaemon.sock"
	// EnvSocket names the environment variable with the socket.
	EnvSocket = "DAMSELFLY_DFDAEMON"
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

func (t Target) endpoint() Endpoint {
	return Endpoint{
		Program: "dfdaemon", Socket: t.Socket, Flag: "dfdaemon", Env: EnvSocket,
		Start: "systemctl start dfdaemon, or dfdaemon --socket " + output.Clean(t.Socket),
	}
}

// Client is a connection to the daemon. The caller closes it.
type Client struct {
	apiv1.NodeClient

	conn     *grpc.ClientConn
	endpoint Endpoint
}

// Dial connects to the daemon.
func (t Target) Dial(ctx context.Context) (*Client, error) {
	e := t.endpoint()
	conn, err := e.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &Client{NodeClient: apiv1.NewNodeClient(conn), conn: conn, endpoint: e}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Explain turns the error of a call into a sentence: see Endpoint.Explain.
func (c *Client) Explain(ctx context.Context, doing string, err error) error {
	return c.endpoint.Explain(ctx, doing, err)
}
