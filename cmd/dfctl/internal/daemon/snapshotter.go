package daemon

import (
	"context"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

const (
	// DefaultSnapshotter is where the snapshotter listens by default.
	DefaultSnapshotter = "/run/damselfly/snapshotter.sock"
	// EnvSnapshotter names the environment variable with the socket.
	EnvSnapshotter = "DAMSELFLY_SNAPSHOTTER"
)

// Snapshotter says where the snapshotter is.
type Snapshotter struct{ Socket string }

// AddFlag adds --snapshotter to a command.
func (t *Snapshotter) AddFlag(fs *pflag.FlagSet, getenv func(string) string) {
	t.Socket = DefaultSnapshotter
	if s := getenv(EnvSnapshotter); s != "" {
		t.Socket = s
	}
	fs.StringVar(&t.Socket, "snapshotter", t.Socket, "`SOCKET` of this node's snapshotter; also "+EnvSnapshotter)
}

// LazyClient is a connection to the snapshotter. The caller closes it.
type LazyClient struct {
	apiv1.LazyClient
	Endpoint

	conn *grpc.ClientConn
}

// Dial connects to the snapshotter.
func (t Snapshotter) Dial(ctx context.Context) (*LazyClient, error) {
	e := Endpoint{
		Program: "snapshotter", Socket: t.Socket, Flag: "snapshotter", Env: EnvSnapshotter,
		Start: "systemctl start damselfly-snapshotter, or snapshotter --address " + output.Clean(t.Socket),
	}
	conn, err := e.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &LazyClient{LazyClient: apiv1.NewLazyClient(conn), Endpoint: e, conn: conn}, nil
}

// Close ends the connection.
func (c *LazyClient) Close() error { return c.conn.Close() }
