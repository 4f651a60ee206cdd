package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/perf/internal/containerd"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// Addresses within the lab's hosts, where every host has its own ports.
const (
	httpAddr   = "127.0.0.1:65003"
	lazyAddr   = "127.0.0.1:65006"
	mirrorAddr = "127.0.0.1:65001"
	grpcPort   = "8002"
	seedPort   = "8003"
	peerPort   = "65002"
)

// overlayfs pulls the image from the registry and unpacks it.
func (t *trial) overlayfs(ctx context.Context) (err error) {
	d, err := t.containerd(ctx, nodeHosts[0], "http://"+t.s.at(registryHost, registryPort), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close(ctx)) }()
	st, err := t.start(ctx, nodeHosts[0], d, t.img.ref())
	if err == nil {
		t.report(overlayfs, st)
	}
	return err
}

const stargzConfig = `[resolver.host.%q]
  [[resolver.host.%[1]q.mirrors]]
    host = %[2]q
    insecure = true
`

// stargz mounts the eStargz variant of the image through stargz-snapshotter.
func (t *trial) stargz(ctx context.Context) (err error) {
	host := nodeHosts[0]
	config, socket, root := t.path("stargz.toml"), t.path("stargz.sock"), t.path("stargz")
	if err := os.WriteFile(config, fmt.Appendf(nil, stargzConfig, registryName, t.s.at(registryHost, registryPort)), 0o600); err != nil {
		return err
	}
	p, err := fleet.Start(ctx, t.s.lab.Host(host), "containerd-stargz-grpc", t.path("stargz.log"), t.s.o.stargz,
		"--address", socket, "--root", root, "--config", config, "--log-level", "warn")
	if err != nil {
		return err
	}
	defer p.Stop()
	if err := awaitSocket(ctx, p, socket); err != nil {
		return err
	}
	d, err := t.containerd(ctx, host, "http://"+t.s.at(registryHost, registryPort), &containerd.Snapshotter{Name: stargz, Address: socket, Root: root})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close(ctx)) }()
	st, err := t.start(ctx, host, d, t.img.estargzRef())
	if err == nil {
		t.report(stargz, st)
	}
	return err
}

// awaitSocket returns when a process listens.
func awaitSocket(ctx context.Context, p *fleet.Process, socket string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", p.Name(), context.Cause(ctx))
		case <-p.Done():
			return p.Err()
		case <-tick.C:
		}
	}
}

// damselfly mounts the image on the first node of a cluster that uses it, and,
// when that has told what the start has read, on a second one.
func (t *trial) damselfly(ctx context.Context, backend string) error {
	token, err := fleet.WriteToken(t.dir)
	if err != nil {
		return err
	}
	supernode, err := fleet.StartSupernode(ctx, fleet.SupernodeOptions{
		Host: t.s.lab.Host(supernodeHost), Program: t.s.program(fleet.Supernode),
		HTTP: httpAddr, GRPC: t.s.at(supernodeHost, grpcPort), Peer: t.s.at(supernodeHost, seedPort),
		Dir: t.path(supernodeHost), TokenFile: token,
	})
	if err != nil {
		return err
	}
	defer supernode.Kill()
	for i, host := range nodeHosts {
		n := &node{trial: t, host: host, token: token, backend: backend}
		defer n.close(ctx) //nolint:errcheck // reported below, unless something else has failed
		if err := n.open(ctx); err != nil {
			return fmt.Errorf("%s: %w", host, err)
		}
		st, err := t.start(ctx, host, n.containerd, t.img.ref())
		if err == nil {
			err = errors.Join(n.check(ctx), n.waits(ctx, &st))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", host, err)
		}
		t.report("damselfly "+backend+[]string{", first node", ", second node"}[i], st)
		if i == 0 {
			if err := n.settle(ctx); err != nil {
				return fmt.Errorf("%s: %w", host, err)
			}
		}
	}
	return nil
}

// node is a node with Damselfly.
type node struct {
	*trial
	host, token, backend string

	dfdaemon    *fleet.Daemon
	snapshotter *fleet.LazyNode
	containerd  *containerd.Daemon
}

// open starts a node's daemons. close ends those that run, whatever it returned.
func (n *node) open(ctx context.Context) (err error) {
	host := n.s.lab.Host(n.host)
	n.dfdaemon, err = fleet.StartDfdaemon(ctx, fleet.DfdaemonOptions{
		Host: host, Program: n.s.program(fleet.Dfdaemon), Name: n.host,
		Supernode: n.s.at(supernodeHost, grpcPort), HTTP: httpAddr, Mirror: mirrorAddr, Peer: n.s.at(n.host, peerPort),
		Dir: n.path(n.host, "d"), TokenFile: n.token,
		Registries: []string{registryName + "=http://" + n.s.at(registryHost, registryPort)},
	})
	if err != nil {
		return err
	}
	o := fleet.SnapshotterOptions{
		Host: host, Program: n.s.program(fleet.Snapshotter), Dfdaemon: n.nodeSocket(), HTTP: lazyAddr,
		Dir: n.path(n.host, "s"), Backend: n.backend, TrustPolicy: n.s.trust,
	}
	if n.snapshotter, err = fleet.StartSnapshotter(ctx, o); err != nil {
		return err
	}
	n.containerd, err = n.trial.containerd(ctx, n.host, "http://"+mirrorAddr, &containerd.Snapshotter{Name: "damselfly", Address: o.Address(), Root: o.Root()})
	return err
}

// nodeSocket is dfdaemon's.
func (n *node) nodeSocket() string { return filepath.Join(n.path(n.host, "d"), "dfdaemon.sock") }

func (n *node) lazySocket() string { return filepath.Join(n.path(n.host, "s"), "s.sock") }

func (n *node) close(ctx context.Context) error {
	var err error
	if n.containerd != nil {
		err = n.containerd.Close(ctx)
	}
	if n.snapshotter != nil {
		n.snapshotter.Stop()
	}
	if n.dfdaemon != nil {
		n.dfdaemon.Stop()
	}
	return err
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// check fails unless the image is mounted lazily by the backend.
func (n *node) check(ctx context.Context) error {
	conn, err := dial(n.lazySocket())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is under way
	list, err := apiv1.NewLazyClient(conn).ListImages(ctx, &apiv1.ListImagesRequest{Image: n.img.manifest.String()})
	if err != nil {
		return fmt.Errorf("ask how the image is mounted: %w", err)
	}
	for _, im := range list.GetImages() {
		for _, m := range im.GetMounts() {
			if m.GetBackend() == n.backend {
				return nil
			}
		}
		if im.GetReason() != "" {
			return fmt.Errorf("the image is not mounted lazily: %s", im.GetReason())
		}
	}
	return fmt.Errorf("the image is not mounted by %s", n.backend)
}

// waits notes which reads had to wait.
func (n *node) waits(ctx context.Context, st *start) error {
	m, err := n.snapshotter.Metrics(ctx)
	if err != nil {
		return err
	}
	st.Waits, st.WaitSeconds = m.Sum("damselfly_mount_fill_seconds_count"), m.Total("damselfly_mount_fill_seconds_sum")
	return nil
}

// settle returns when the supernode knows what the start has read, and the
// node, which completes the image, has received next to nothing for a while.
func (n *node) settle(ctx context.Context) error {
	conn, err := dial(n.nodeSocket())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is under way
	client := apiv1.NewNodeClient(conn)
	const (
		while = time.Second
		noise = 64 << 10 // bytes: heartbeats and the like
	)
	tick := time.NewTicker(while)
	defer tick.Stop()
	var before int64
	for {
		c, err := n.s.lab.Host(n.host).Counters(ctx)
		if err != nil {
			return err
		}
		p, err := client.Profile(ctx, &apiv1.ProfileRequest{Image: n.img.manifest.String()})
		if err != nil && status.Code(err) != codes.Unavailable {
			return fmt.Errorf("ask for the profile of the image: %w", err)
		}
		if p.GetReports() > 0 && c.ReceivedBytes-before < noise {
			return nil
		}
		before = c.ReceivedBytes
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for the first node to settle, after %d reports of what it read: %w", p.GetReports(), context.Cause(ctx)), err)
		case <-tick.C:
		}
	}
}
