package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/telemetry"
	"github.com/damselfly-io/damselfly/snapshotter/ahead"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/fill"
	"github.com/damselfly-io/damselfly/snapshotter/lazy"
	"github.com/damselfly-io/damselfly/snapshotter/node"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Run is a snapshotter: it returns when ctx ends, or with an error when it
// cannot start or go on.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return errors.New("the snapshotter mounts file systems: it must be run as root")
	}
	if err := os.MkdirAll(filepath.Dir(c.Address), 0o755); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	http, err := telemetry.Listen("tcp", c.HTTP, "http")
	if err != nil {
		return err
	}
	defer http.Close() //nolint:errcheck // its server has closed it
	s := &snapshotter{c: c, log: log, reg: telemetry.Registry()}
	s.metrics = newMetrics(s.reg)
	defer s.close()
	if err := s.open(ctx); err != nil {
		return err
	}
	// Containerd's requests wait in the socket until here.
	socket, err := telemetry.Listen("unix", c.Address, "address")
	if err != nil {
		return err
	}
	defer socket.Close() //nolint:errcheck // its server has closed it
	if err := os.Chmod(c.Address, 0o600); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	log.Info("the snapshotter is up", "address", c.Address, "backend", s.backend.Name(), "data-dir", c.DataDir,
		"http", http.Addr().String(), "version", telemetry.Version())
	if err := cli.NotifyReady(); err != nil {
		log.Warn("systemd was not told that the snapshotter is ready", "error", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return telemetry.Serve(ctx, http, telemetry.Mux(s.reg, &s.health), log) })
	group.Go(func() error { return s.serve(ctx, socket) })
	group.Go(func() error { return s.images.Run(ctx) })
	return group.Wait()
}

// snapshotter is the set of parts that live as long as Run.
type snapshotter struct {
	c       Config
	log     *slog.Logger
	reg     *prometheus.Registry
	metrics *metrics
	health  telemetry.Health

	node      *node.Client
	devices   *device.Store
	filler    *fill.Filler
	ahead     *ahead.Manager
	keeper    *keeper
	backend   backend.Backend
	images    *lazy.Images
	snapshots *snapshots.Snapshotter

	// tables is images as the device store sees them: nil until they are there.
	tables atomic.Pointer[lazy.Images]
}

// open makes the parts, in order of dependence.
func (s *snapshotter) open(ctx context.Context) (err error) {
	c := &s.c
	if s.node, err = node.New(node.Options{Socket: c.Dfdaemon}); err != nil {
		return err
	}
	s.health.Register("dfdaemon", s.node.Ping)
	if c.DataDir, err = dataDir(c.DataDir); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	s.devices, err = device.Open(device.Options{
		Dir: filepath.Join(c.DataDir, "devices"), Limit: int64(c.CacheSize), MinFree: int64(c.CacheMinFree), Log: s.log,
		OnEvict: func(_ device.Key, freed int64) { s.metrics.evicted.Add(float64(freed)) },
		OnLost:  s.lost,
		Keep:    s.keep,
	})
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	s.filler, err = fill.New(fill.Options{
		Fetch: s.node, Metrics: s.metrics, Log: s.log, Deadline: c.ReadTimeout, MemoryBudget: int64(c.FillMemory),
		OnAccess: func(d *device.Device, group int) { s.ahead.Accessed(d, group) },
	})
	if err != nil {
		return err
	}
	s.ahead = ahead.New(ahead.Options{
		Filler: background{s.filler, fill.NewLimiter(fill.LimiterOptions{BytesPerSecond: int64(c.BackgroundRate)})}, Profiles: s.node, Learn: c.Prefetch, Background: c.Background, Log: s.log,
	})
	if s.keeper, err = openKeeper(ctx, c, s.log); err != nil {
		return err
	}
	s.health.Register("keeper", s.keeper.reachable)
	if s.backend, err = s.chooseBackend(ctx); err != nil {
		return err
	}
	return s.openImages(ctx)
}

// maxDataDir is how long the path of the data directory may be, in bytes: the
// kernel takes the names of an EROFS image and its devices up to 255 bytes.
const maxDataDir = 150

// dataDir makes the data directory and returns its path as the kernel has it:
// containerd and later processes compare and mount what is below.
func dataDir(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	switch {
	case strings.ContainsAny(path, `:,\`+"\n"):
		return "", fmt.Errorf("%q: overlayfs cannot be given paths with colons, commas, backslashes or line ends", path)
	case len(path) > maxDataDir:
		return "", fmt.Errorf("%q: at most %d bytes can be used", path, maxDataDir)
	}
	return path, nil
}

// openImages takes over what an earlier process has left.
func (s *snapshotter) openImages(ctx context.Context) (err error) {
	c := &s.c
	p := &policy{file: c.TrustPolicy, info: s.node.Info, log: s.log}
	if _, err := p.get(ctx); err != nil {
		return err
	}
	s.images, err = lazy.New(lazy.Options{
		Dir: filepath.Join(c.DataDir, "lazy"), Devices: s.devices, Backend: s.backend,
		Registry: s.registry, Policy: p.get, RefuseBound: !c.TrustBound, Off: !c.Lazy, Usable: s.keeper.usable,
		Timeout: c.LookupTimeout, KeepNo: c.LookupKeep,
		Mounted: s.mounted, Ready: s.metrics.ready.Observe, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.tables.Store(s.images)
	s.snapshots, err = snapshots.New(ctx, snapshots.Options{
		Root: filepath.Join(c.DataDir, "snapshots"), Images: s.images, Log: s.log, AsyncRemove: true, RemapIDs: true, Staged: c.Staged,
		Decided: func(d snapshots.Decided) { s.metrics.decided(d.Reason.Code) },
	})
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	s.reclaim(ctx)
	s.devices.Recovered()
	// Only now is known what is still needed of what the holders have.
	s.keeper.run(s.log) //nolint:contextcheck // it lives until close
	return nil
}

// reclaim settles what the holders have of mounts that are not there any more.
func (s *snapshotter) reclaim(ctx context.Context) {
	names, err := s.keeper.names(ctx)
	if err != nil {
		s.log.Warn("not all holders of the kernel's files can be asked", "error", err)
	}
	if b, ok := s.backend.(*erofs.Backend); ok {
		b.Reclaim(names, s.devices.Load) //nolint:contextcheck // guards live until the backend is closed
	}
}

// registry opens a repository through the daemon, which has the credentials.
func (s *snapshotter) registry(ctx context.Context, ref image.Ref) (*image.Source, error) {
	return image.Open(ctx, ref, image.Options{
		Transport: s.node.Transport(), Keychain: authn.NewMultiKeychain(), PlainHTTP: func(string) bool { return false }, MaxAttempts: 2,
	})
}

// mounted looks after a chain that has been mounted.
func (s *snapshotter) mounted(m lazy.Mounted) (ended func()) {
	s.metrics.mountsUp.Inc()
	end := s.ahead.Mounted(ahead.Mount{Image: m.Manifest, Devices: m.Devices, Adopted: m.Adopted})
	return func() {
		end()
		for _, d := range m.Devices {
			s.filler.Forget(d)
		}
		s.metrics.mountsUp.Dec()
	}
}

// lost has groups filled again that were found damaged in a device that is
// mounted: nothing else would, if its readers raise no events any more.
func (s *snapshotter) lost(d *device.Device, groups []int) {
	s.metrics.lost.Add(float64(len(groups)))
	s.log.Error("content was found damaged on the disk: it is fetched again", "device", d.Path(), "groups", groups)
	s.ahead.Refill(d, groups)
}

// keep reports whether the table of a device is needed once its content is
// evicted.
func (s *snapshotter) keep(key device.Key) bool {
	images := s.tables.Load()
	return images == nil || images.Keep(key)
}

// background is what package ahead uses of a filler.
type background struct {
	*fill.Filler
	limiter *fill.Limiter
}

// Complete completes a device, all devices together at the rate that is set.
func (b background) Complete(ctx context.Context, d *device.Device) error {
	return b.Filler.Complete(ctx, d, b.limiter)
}

// serve answers containerd and dfctl.
func (s *snapshotter) serve(ctx context.Context, lis net.Listener) error {
	srv := grpc.NewServer()
	snapshots.Register(srv, s.snapshots)
	registerLazy(srv, s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", lis.Addr(), err)
	case <-ctx.Done():
		// What containerd is waiting for may be waiting for a registry.
		hurry := time.AfterFunc(stopPatience, srv.Stop)
		defer hurry.Stop()
		srv.GracefulStop()
		return <-served
	}
}

// stopPatience is how long requests under way may take when the snapshotter ends.
const stopPatience = 10 * time.Second

// close ends the parts, in reverse order. What is mounted stays mounted.
func (s *snapshotter) close() {
	if s.keeper != nil {
		s.keeper.stop()
	}
	if s.snapshots != nil {
		s.logged("closing the snapshots", s.snapshots.Close())
	}
	if s.images != nil {
		s.images.Stop() // it mounts
	}
	if s.backend != nil {
		s.logged("closing the backend", s.backend.Close())
	}
	if s.ahead != nil {
		s.ahead.Close()
	}
	if s.filler != nil {
		s.logged("closing the filler", s.filler.Close())
	}
	if s.images != nil {
		s.images.Close()
	}
	if s.devices != nil {
		s.logged("closing the devices", s.devices.Close())
	}
	if s.keeper != nil {
		s.logged("closing the connection to the keeper", s.keeper.close())
	}
	if s.node != nil {
		s.logged("closing the connection to dfdaemon", s.node.Close())
	}
}

func (s *snapshotter) logged(doing string, err error) {
	if err != nil {
		s.log.Error(doing, "error", err)
	}
}
