package supernode

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/secret"
	"github.com/damselfly-io/damselfly/internal/telemetry"
	"github.com/damselfly-io/damselfly/internal/ticket"
	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/exchange"
	"github.com/damselfly-io/damselfly/supernode/preheat"
	"github.com/damselfly-io/damselfly/supernode/profile"
	"github.com/damselfly-io/damselfly/supernode/state"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// listeners are the supernode's open ports.
type listeners struct{ http, grpc, peer net.Listener }

func listen(c Config) (l listeners, err error) {
	for _, x := range []struct {
		to        *net.Listener
		addr, key string
	}{{&l.http, c.HTTP, "http"}, {&l.grpc, c.GRPC, "grpc"}, {&l.peer, c.Peer, "peer"}} {
		if *x.to, err = telemetry.Listen("tcp", x.addr, x.key); err != nil {
			return l, errors.Join(err, l.close())
		}
	}
	return l, nil
}

func (l listeners) close() error {
	var errs []error
	for _, x := range []net.Listener{l.http, l.grpc, l.peer} {
		if x != nil {
			errs = append(errs, x.Close())
		}
	}
	return errors.Join(errs...)
}

// Run is a supernode: it returns when ctx ends, or with an error when it cannot
// start or go on.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	join, err := secret.ReadFile(c.JoinTokenFile)
	if err != nil {
		return fmt.Errorf("join-token-file: %w", err)
	}
	ports, err := listen(c)
	if err != nil {
		return err
	}
	defer ports.close() //nolint:errcheck // the servers have closed what they served
	s, err := open(c, log)
	if err != nil {
		return err
	}
	defer s.close()
	api, err := s.api(c)
	if err != nil {
		return err
	}

	log.Info("supernode is up", "name", c.Name, "http", ports.http.Addr().String(),
		"grpc", ports.grpc.Addr().String(), "peer", ports.peer.Addr().String(), "version", telemetry.Version())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return telemetry.Serve(ctx, ports.http, api, log) })
	group.Go(func() error { return telemetry.Serve(ctx, ports.peer, s.pieceServer(ctx, c), log) })
	group.Go(func() error { return s.serveGRPC(ctx, ports.grpc, secret.Join{Token: join}) })
	group.Go(func() error { return s.tracker.Run(ctx) })
	group.Go(func() error { return s.jobs.Run(ctx) })
	group.Go(func() error { return s.accelerate.Run(ctx) })
	group.Go(func() error { return s.profiles.Run(ctx) })
	return group.Wait()
}

// supernode is the set of parts that live as long as Run.
type supernode struct {
	log      *slog.Logger
	reg      *prometheus.Registry
	metrics  *metrics
	health   telemetry.Health
	state    state.Store
	store    *piecestore.Store
	origin   *origin.Client
	client   *pieces.Client
	tracker  *tracker.Tracker
	cache    *cdn.Cache
	exchange *exchange.Exchanger
	jobs     *preheat.Manager
	profiles *profile.Store

	accelerate *accelerate.Accelerator
	master     []byte
}

// open makes the parts, in order of dependence.
func open(c Config, log *slog.Logger) (_ *supernode, err error) {
	s := &supernode{log: log, reg: telemetry.Registry()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.metrics = newMetrics(s.reg)
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	db, err := state.OpenBolt(filepath.Join(c.DataDir, "state.db"))
	if err != nil {
		return nil, fmt.Errorf("opening the state: %w", err)
	}
	s.state = db
	if s.master, err = masterKey(s.state); err != nil {
		return nil, err
	}
	if s.profiles, err = profile.Open(profile.Options{State: s.state, Log: log}); err != nil {
		return nil, err
	}
	s.store, err = piecestore.Open(piecestore.Options{
		Dir: filepath.Join(c.DataDir, "cache"), Limit: int64(c.CacheSize), MinFree: int64(c.CacheMinFree), Log: log,
		OnDamage: s.damaged, OnRemove: s.removed,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the cache: %w", err)
	}
	o := origin.Options{IdleTimeout: c.OriginTimeout, Observe: s.metrics.origin}
	if c.DockerConfig != "" {
		o.Keychain = origin.DockerConfig(c.DockerConfig)
	}
	s.origin = origin.New(o)
	var trusted [][]byte
	if s.accelerate, trusted, err = s.newAccelerator(c, o.Keychain); err != nil {
		return nil, err
	}
	s.client = pieces.NewClient(pieces.ClientOptions{})
	s.tracker = tracker.New(tracker.Options{
		Name: c.Name, Address: c.Peer, MasterKey: s.master, Pieces: s.client, Log: log,
		MaxParents: c.MaxParents, TicketTTL: c.TicketTTL, Quarantine: c.Quarantine,
		TrustKeys: trusted, OnQuarantine: func(string) { s.metrics.quarantined.Inc() },
	})
	hub := preheat.NewHub(s.tracker)
	s.cache = cdn.New(cdn.Options{
		Store: s.store, Origin: s.origin, Events: hub, Log: log, SpoolDir: c.DataDir,
		StandIn: s.accelerate.StandIn, Segment: int64(c.OriginSegment), Parallel: c.OriginParallel, AuthTTL: c.AuthTTL, ResolveTTL: c.TagTTL,
	})
	s.tracker.Use(s.cache)
	s.accelerate.Use(s.cache)
	s.exchange = exchange.New(exchange.Options{Origin: s.origin, Overlay: s.accelerate, TagTTL: c.TagTTL, DigestTTL: c.AuthTTL})
	s.jobs, err = s.newJobs(c, hub)
	return s, err
}

// close ends the parts, in reverse order.
func (s *supernode) close() {
	if s.tracker != nil {
		s.tracker.Close()
	}
	if s.cache != nil {
		s.cache.Close()
	}
	if s.client != nil {
		s.client.Close()
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error("closing the cache", "error", err)
		}
	}
	if s.state != nil {
		if err := s.state.Close(); err != nil {
			s.log.Error("closing the state", "error", err)
		}
	}
}

// masterKey returns the key that tickets derive from, made on first use. It is
// kept so that peers go on serving each other across a restart.
func masterKey(st state.Store) ([]byte, error) {
	const bucket, name = "keys", "master"
	key, err := st.Get(bucket, name)
	if err == nil && len(key) == 32 {
		return key, nil
	}
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return nil, fmt.Errorf("reading the master key: %w", err)
	}
	key = make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making a master key: %w", err)
	}
	if err := st.Put(bucket, name, key); err != nil {
		return nil, fmt.Errorf("keeping the master key: %w", err)
	}
	return key, nil
}

func (s *supernode) pieceServer(ctx context.Context, c Config) http.Handler {
	return pieces.NewServer(pieces.ServerOptions{
		Name: c.Name, Key: func() ticket.Key { return ticket.ServingKey(s.master, c.Name) },
		Store: s.store, Catalog: s.tracker, Log: s.log, Stop: ctx.Done(),
		Slots: c.UploadSlots, Rate: rate.Limit(c.UploadRate), HolderRate: rate.Limit(c.UploadPeerRate),
		Sent:    func(n int64) { s.metrics.uploaded.Add(float64(n)) },
		Refused: func(error) { s.metrics.refused.Inc() },
	})
}

// Memory per connection matters with thousands of nodes.
const grpcBuffer = 4 << 10

func (s *supernode) serveGRPC(ctx context.Context, lis net.Listener, join secret.Join) error {
	srv := grpc.NewServer(append(join.ServerOptions(), //nolint:contextcheck // calls bring their own context
		grpc.ReadBufferSize(grpcBuffer), grpc.WriteBufferSize(grpcBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(16<<20), grpc.WaitForHandlers(true),
	)...)
	apiv1.RegisterSwarmServer(srv, &swarmService{tracker: s.tracker, exchange: s.exchange, profiles: s.profiles})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving gRPC on %s: %w", lis.Addr(), err)
	case <-ctx.Done():
		s.tracker.Disconnect()
		srv.Stop()
		return <-served
	}
}
