package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// SupernodeOptions say how to run a supernode. All are required.
type SupernodeOptions struct {
	Host             Host
	Program          string
	HTTP, GRPC, Peer string // addresses to listen on
	Dir              string // for data and log
	TokenFile        string // the join token
}

func (o SupernodeOptions) args() []string {
	return []string{
		"--http", o.HTTP, "--grpc", o.GRPC, "--peer", o.Peer,
		"--data-dir", filepath.Join(o.Dir, "data"), "--join-token-file", o.TokenFile,
	}
}

// StartSupernode starts a supernode and waits until it is ready.
func StartSupernode(ctx context.Context, o SupernodeOptions) (*Daemon, error) {
	return start(ctx, o.Host, "supernode", o.Dir, o.Program, o.HTTP, o.args())
}

// DfdaemonOptions say how to run a dfdaemon. Zone and Proxy may be empty.
type DfdaemonOptions struct {
	Host               Host
	Program            string
	Name               string
	Supernode          string // its gRPC address
	HTTP, Mirror, Peer string // addresses to listen on
	Proxy              string // address of the forward proxy; default none
	Dir                string // for data, socket and log
	TokenFile          string
	Zone               string
	// ProxyRules are regular expressions of URLs that the proxy fetches through
	// the swarm; default none.
	ProxyRules []string
	// Registries that the mirror serves: HOST or HOST=http://UPSTREAM.
	Registries []string
}

func (o DfdaemonOptions) args() []string {
	args := []string{
		"--name", o.Name, "--supernode", o.Supernode, "--http", o.HTTP, "--mirror", o.Mirror, "--peer", o.Peer,
		// Relative to Dir, where the process runs: the path of a socket is
		// limited to about 100 bytes.
		"--socket", "dfdaemon.sock",
		"--data-dir", filepath.Join(o.Dir, "data"), "--join-token-file", o.TokenFile,
	}
	if o.Zone != "" {
		args = append(args, "--zone", o.Zone)
	}
	if o.Proxy != "" {
		args = append(args, "--proxy", o.Proxy)
	}
	for _, r := range o.ProxyRules {
		args = append(args, "--proxy-rule", r)
	}
	for _, r := range o.Registries {
		args = append(args, "--allow-registry", r)
	}
	return args
}

// StartDfdaemon starts a dfdaemon and waits until it is ready.
func StartDfdaemon(ctx context.Context, o DfdaemonOptions) (*Daemon, error) {
	return start(ctx, o.Host, o.Name, o.Dir, o.Program, o.HTTP, o.args())
}

// Daemon is a running daemon.
type Daemon struct {
	*Process
	host Host
	http string
}

func start(ctx context.Context, h Host, name, dir, program, http string, args []string) (*Daemon, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p, err := Start(ctx, h, name, filepath.Join(dir, "log"), program, args...)
	if err != nil {
		return nil, err
	}
	d := &Daemon{Process: p, host: h, http: http}
	if err := AwaitReady(ctx, h, p, "http://"+http+"/readyz"); err != nil {
		p.Kill()
		return nil, err
	}
	return d, nil
}

// Get fetches a small document from the daemon's HTTP address.
func (d *Daemon) Get(ctx context.Context, path string) ([]byte, error) {
	return Get(ctx, d.host, "http://"+d.http+path)
}

// Metrics reads the daemon's metrics.
func (d *Daemon) Metrics(ctx context.Context) (Metrics, error) {
	text, err := d.Get(ctx, "/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", d.Name(), err)
	}
	m, err := ParseMetrics(string(text))
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", d.Name(), err)
	}
	return m, nil
}

// WriteToken writes a new join token to a file in dir and returns its path.
func WriteToken(dir string) (string, error) {
	path := filepath.Join(dir, "join-token")
	if err := os.WriteFile(path, []byte(rand.Text()+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write join token: %w", err)
	}
	return path, nil
}

// FreeAddresses returns n loopback addresses whose ports nobody listens on
// now. Another program may take one before it is used; the daemon that wanted
// it then says so and ends.
func FreeAddresses(ctx context.Context, n int) ([]string, error) {
	var lc net.ListenConfig
	free := make([]string, n)
	for i := range free {
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find free ports: %w", err)
		}
		// Held until all are found, or the same port would come again.
		defer l.Close() //nolint:errcheck // never used
		free[i] = l.Addr().String()
	}
	return free, nil
}
