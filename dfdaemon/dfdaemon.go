package dfdaemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/authority"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/dfdaemon/mirror"
	"github.com/damselfly-io/damselfly/dfdaemon/node"
	"github.com/damselfly-io/damselfly/dfdaemon/proxy"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/secret"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/telemetry"
	"github.com/damselfly-io/damselfly/internal/upstream"
)

// listeners are the daemon's open ports; proxy is nil if there is none.
type listeners struct{ mirror, peer, http, proxy, socket, httpSocket net.Listener }

// Beside the daemon's socket are that of the registry mirror for the node's own
// programs, and that of the keeper of descriptors.
func httpSocket(c Config) string   { return beside(c.Socket, "-http") }
func keeperSocket(c Config) string { return beside(c.Socket, "-fds") }

func beside(socket, suffix string) string {
	ext := filepath.Ext(socket)
	return strings.TrimSuffix(socket, ext) + suffix + ext
}

func listen(c Config) (l listeners, err error) {
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return l, fmt.Errorf("socket: %w", err)
	}
	ports := []struct {
		to                 *net.Listener
		network, addr, key string
	}{
		{&l.mirror, "tcp", c.Mirror, "mirror"}, {&l.peer, "tcp", c.Peer, "peer"},
		{&l.http, "tcp", c.HTTP, "http"}, {&l.proxy, "tcp", c.Proxy, "proxy"},
		{&l.socket, "unix", c.Socket, "socket"}, {&l.httpSocket, "unix", httpSocket(c), "socket"},
	}
	for _, p := range ports {
		if p.addr == "" {
			continue
		}
		if *p.to, err = telemetry.Listen(p.network, p.addr, p.key); err != nil {
			return l, errors.Join(err, l.close())
		}
	}
	for _, path := range []string{c.Socket, httpSocket(c)} {
		if err := os.Chmod(path, 0o600); err != nil {
			return l, errors.Join(fmt.Errorf("socket: %w", err), l.close())
		}
	}
	return l, nil
}

func (l listeners) close() error {
	var errs []error
	for _, x := range []net.Listener{l.mirror, l.peer, l.http, l.proxy, l.socket, l.httpSocket} {
		if x != nil {
			errs = append(errs, x.Close())
		}
	}
	return errors.Join(errs...)
}

// Run is a dfdaemon: it returns when ctx ends, or with an error when it cannot
// start or go on.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	ports, err := listen(c)
	if err != nil {
		return err
	}
	defer ports.close() //nolint:errcheck // the servers have closed what they served
	d, err := open(c, log)
	if err != nil {
		return err
	}
	defer d.close()

	log.Info("dfdaemon is up", "name", c.Name, "mirror", ports.mirror.Addr().String(), "peer", ports.peer.Addr().String(),
		"http", ports.http.Addr().String(), "socket", c.Socket, "version", telemetry.Version())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return telemetry.Serve(ctx, ports.mirror, d.mirror, log) })
	group.Go(func() error { return telemetry.Serve(ctx, ports.peer, d.pieceServer(ctx, c), log) })
	group.Go(func() error { return telemetry.Serve(ctx, ports.http, telemetry.Mux(d.reg, &d.health), log) })
	if ports.proxy != nil {
		group.Go(func() error { return telemetry.Serve(ctx, ports.proxy, d.proxy, log) })
	}
	group.Go(func() error { return telemetry.Serve(ctx, ports.httpSocket, d.mirror.Node(), log) })
	group.Go(func() error { return d.serveSocket(ctx, ports.socket, c) })
	group.Go(func() error { return keepDescriptors(ctx, keeperSocket(c), log) })
	group.Go(func() error { return d.swarm.Run(ctx, d.engine) })
	group.Go(func() error {
		<-ctx.Done()
		d.engine.Stop() // or clients in the middle of a download would be waited for
		return nil
	})
	return group.Wait()
}

// daemon is the set of parts that live as long as Run.
type daemon struct {
	log     *slog.Logger
	reg     *prometheus.Registry
	metrics *metrics
	health  telemetry.Health
	store   *piecestore.Store
	grants  *grant.Store
	swarm   *swarm.Client
	pieces  *pieces.Client
	origin  *origin.Client
	engine  *engine.Engine
	node    *authority.Authority
	mirror  *mirror.Mirror
	proxy   *proxy.Proxy
}

// open makes the parts, in order of dependence.
func open(c Config, log *slog.Logger) (_ *daemon, err error) {
	d := &daemon{log: log, reg: telemetry.Registry()}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	d.metrics = newMetrics(d.reg)
	token, err := secret.ReadFile(c.JoinTokenFile)
	if err != nil {
		return nil, fmt.Errorf("join-token-file: %w", err)
	}
	registries, err := upstream.Parse(c.AllowRegistry)
	if err != nil {
		return nil, fmt.Errorf("allow-registry: %w", err)
	}
	if err := d.openStores(c); err != nil {
		return nil, err
	}
	d.swarm = swarm.New(swarm.Options{
		Supernodes: c.Supernode, JoinToken: token, Log: log,
		Hello: &apiv1.Hello{Name: c.Name, Zone: c.Zone, Rack: c.Rack, PeerAddress: peerAddress(c), Version: telemetry.Version()},
	})
	o := origin.Options{IdleTimeout: c.OriginTimeout, Observe: d.metrics.origin}
	if c.DockerConfig != "" {
		o.Keychain = origin.DockerConfig(c.DockerConfig)
	}
	d.origin = origin.New(o)
	d.pieces = pieces.NewClient(pieces.ClientOptions{})
	d.engine = engine.New(engine.Options{
		Store: d.store, Supernode: d.swarm, Pieces: d.pieces, Origin: d.origin, Log: log,
		Grace: c.OriginGrace, OriginReads: c.OriginReads, Linger: c.Linger,
		Received: d.metrics.received,
		Rejected: func(reason string) { d.metrics.rejected.WithLabelValues(reason).Inc() },
	})
	d.node = authority.New(authority.Options{
		Registries: registries, Grants: d.grants, Exchange: d.swarm, Keychain: o.Keychain, Origin: o, YesTTL: c.AuthTTL,
	})
	d.mirror = mirror.New(mirror.Options{
		Engine: d.engine, Exchange: d.swarm, Origin: d.origin, Registries: registries, Grants: d.grants, Authority: d.node,
		Log: log, AuthTTL: c.AuthTTL,
		Served: func(kind string, status int) { d.metrics.served.WithLabelValues(kind, strconv.Itoa(status)).Inc() },
	})
	if d.proxy, err = proxy.New(proxy.Options{Engine: d.engine, Rules: c.ProxyRules, Log: log}); err != nil {
		return nil, fmt.Errorf("proxy-rule: %w", err)
	}
	d.health.Register("supernode", func(context.Context) error {
		if up, since := d.swarm.Connected(); !up {
			return fmt.Errorf("%w since %s", swarm.ErrUnreachable, since.Format("15:04:05"))
		}
		return nil
	})
	return d, nil
}

// openStores opens what is on disk. The store's callbacks reach the engine,
// which is made later, before anything can be removed.
func (d *daemon) openStores(c Config) (err error) {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	d.store, err = piecestore.Open(piecestore.Options{
		Dir: filepath.Join(c.DataDir, "cache"), Limit: int64(c.CacheSize), MinFree: int64(c.CacheMinFree), Log: d.log,
		OnRemove: func(id task.ID) { d.engine.Removed(id) },
		OnDamage: func(id task.ID, piece int) { d.engine.Damaged(id, piece) },
	})
	if err != nil {
		return fmt.Errorf("opening the cache: %w", err)
	}
	d.grants, err = grant.Open(filepath.Join(c.DataDir, "grants"), c.GrantTTL, nil)
	return err
}

func peerAddress(c Config) string {
	if c.PeerAddress != "" {
		return c.PeerAddress
	}
	return c.Peer
}

// close ends the parts, in reverse order.
func (d *daemon) close() {
	if d.engine != nil {
		d.engine.Close()
	}
	if d.pieces != nil {
		d.pieces.Close()
	}
	if d.store != nil {
		if err := d.store.Close(); err != nil {
			d.log.Error("closing the cache", "error", err)
		}
	}
}

func (d *daemon) pieceServer(ctx context.Context, c Config) http.Handler {
	return pieces.NewServer(pieces.ServerOptions{
		Name: c.Name, Key: d.swarm.ServingKey, Store: d.store, Catalog: d.engine, Log: d.log, Stop: ctx.Done(),
		Slots: c.UploadSlots, Rate: rate.Limit(c.UploadRate), HolderRate: rate.Limit(c.UploadPeerRate),
		Sent:    func(n int64) { d.metrics.uploaded.Add(float64(n)) },
		Refused: func(error) { d.metrics.refused.Inc() },
	})
}

// maxMessage bounds a message to the socket, in bytes: it may hold a large
// table of pieces.
const maxMessage = 16 << 20

func (d *daemon) serveSocket(ctx context.Context, lis net.Listener, c Config) error {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	apiv1.RegisterNodeServer(srv, node.New(node.Options{
		Engine: d.engine, Store: d.store, Authority: d.node, Swarm: d.swarm, Log: d.log,
		Info: &apiv1.InfoResponse{Version: telemetry.Version(), Name: c.Name, HttpSocket: httpSocket(c)},
	}))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", lis.Addr(), err)
	case <-ctx.Done():
		srv.Stop()
		return <-served
	}
}
