package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

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

// trial is a cluster on empty directories.
type trial struct {
	*lab
	dir       string
	token     string
	supernode *fleet.Daemon
	closers   []func(context.Context)
}

func (t *trial) path(elem ...string) string {
	return filepath.Join(append([]string{t.dir}, elem...)...)
}

// close ends what was started, the last first.
func (t *trial) close(ctx context.Context) {
	for i := len(t.closers) - 1; i >= 0; i-- {
		t.closers[i](ctx)
	}
}

func (t *trial) onClose(f func(context.Context)) { t.closers = append(t.closers, f) }

// startSupernode starts the supernode.
func (t *trial) startSupernode(ctx context.Context) (err error) {
	if t.token, err = fleet.WriteToken(t.dir); err != nil {
		return err
	}
	t.supernode, err = fleet.StartSupernode(ctx, fleet.SupernodeOptions{
		Host: t.net.Host(supernodeHost), Program: t.program(fleet.Supernode),
		HTTP: httpAddr, GRPC: t.at(supernodeHost, grpcPort), Peer: t.at(supernodeHost, seedPort),
		Dir: t.path(supernodeHost), TokenFile: t.token,
	})
	if err == nil {
		t.onClose(func(context.Context) { t.supernode.Kill() })
	}
	return err
}

// plain starts a containerd without Damselfly.
func (t *trial) plain(ctx context.Context, host string) (*containerd.Daemon, error) {
	d, err := containerd.Start(ctx, containerd.Options{
		Host: t.net.Host(host), Programs: t.containerd, Dir: t.path(host, "c"),
		Registry: registryName, Endpoint: "http://" + t.at(registryHost, registryPort),
	})
	if err == nil {
		t.onClose(func(ctx context.Context) { t.complain(d.Close(ctx)) })
	}
	return d, err
}

// complain reports what went wrong while something was ended.
func (t *trial) complain(err error) {
	if err != nil {
		t.o.log("%v", err)
	}
}

// node is a node with Damselfly.
type node struct {
	*trial
	host, backend string

	dfdaemon    *fleet.Daemon
	snapshotter *fleet.LazyNode
	containerd  *containerd.Daemon
	conn        *grpc.ClientConn
	views       int
}

// startNode starts a node's daemons; flags are the snapshotter's.
func (t *trial) startNode(ctx context.Context, host, backend string, flags ...string) (*node, error) {
	n := &node{trial: t, host: host, backend: backend}
	if err := n.open(ctx, flags); err != nil {
		return nil, fmt.Errorf("%s: %w", host, err)
	}
	return n, nil
}

func (n *node) open(ctx context.Context, flags []string) (err error) {
	host := n.net.Host(n.host)
	n.dfdaemon, err = fleet.StartDfdaemon(ctx, fleet.DfdaemonOptions{
		Host: host, Program: n.program(fleet.Dfdaemon), Name: n.host,
		Supernode: n.at(supernodeHost, grpcPort), HTTP: httpAddr, Mirror: mirrorAddr, Peer: n.at(n.host, peerPort),
		Dir: n.path(n.host, "d"), TokenFile: n.token,
		Registries: []string{registryName + "=http://" + n.at(registryHost, registryPort)},
	})
	if err != nil {
		return err
	}
	n.onClose(func(context.Context) { n.dfdaemon.Stop() })
	o := fleet.SnapshotterOptions{
		Host: host, Program: n.program(fleet.Snapshotter), Dfdaemon: filepath.Join(n.path(n.host, "d"), "dfdaemon.sock"), HTTP: lazyAddr,
		Dir: n.path(n.host, "s"), Backend: n.backend, TrustPolicy: n.trust, Flags: flags,
	}
	if n.snapshotter, err = fleet.StartSnapshotter(ctx, o); err != nil {
		return err
	}
	n.onClose(func(context.Context) { n.snapshotter.Stop() })
	if n.conn, err = grpc.NewClient("unix:"+o.Address(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	n.onClose(func(context.Context) { n.complain(n.conn.Close()) })
	n.containerd, err = containerd.Start(ctx, containerd.Options{
		Host: host, Programs: n.trial.containerd, Dir: n.path(n.host, "c"),
		Registry: registryName, Endpoint: "http://" + mirrorAddr,
		Snapshotter: &containerd.Snapshotter{Name: snapshotterName, Address: o.Address(), Root: o.Root()},
	})
	if err == nil {
		n.onClose(func(ctx context.Context) { n.complain(n.containerd.Close(ctx)) })
	}
	return err
}

// snapshotterName is containerd's name for Damselfly.
const snapshotterName = "damselfly"

// view makes one more view of an image that has been pulled, without looking at
// how it is mounted.
func (n *node) view(ctx context.Context, img *image) error {
	n.views++
	_, err := n.containerd.Ctr(ctx, "snapshots", "--snapshotter", snapshotterName, "view", "bench-"+strconv.Itoa(n.views), img.chain.String())
	return err
}

// mount pulls an image, mounts it and returns the directory where it is.
func (n *node) mount(ctx context.Context, img *image) (string, error) {
	if err := n.containerd.Pull(ctx, img.ref()); err != nil {
		return "", err
	}
	if err := n.view(ctx, img); err != nil {
		return "", err
	}
	m, err := n.mounted(ctx, img)
	return m.GetDirectory(), err
}

// mounted returns the image's mount. It fails unless it is mounted lazily by the
// backend.
func (n *node) mounted(ctx context.Context, img *image) (*apiv1.LazyMount, error) {
	list, err := apiv1.NewLazyClient(n.conn).ListImages(ctx, &apiv1.ListImagesRequest{Image: img.manifest.String()})
	if err != nil {
		return nil, fmt.Errorf("ask how %s is mounted: %w", img.name, err)
	}
	for _, im := range list.GetImages() {
		for _, m := range im.GetMounts() {
			if m.GetBackend() == n.backend && m.GetChain() == img.chain.String() {
				return m, nil
			}
		}
		if im.GetReason() != "" {
			return nil, fmt.Errorf("%s is not mounted lazily: %s", img.name, im.GetReason())
		}
	}
	return nil, fmt.Errorf("%s is not mounted by %s", img.name, n.backend)
}

// awaitComplete returns when the image's content has arrived.
func (n *node) awaitComplete(ctx context.Context, img *image) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		m, err := n.mounted(ctx, img)
		if err != nil {
			return err
		}
		if m.GetPresentBytes() == m.GetTotalBytes() {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for the image to be complete: %d of %d bytes", m.GetPresentBytes(), m.GetTotalBytes()), context.Cause(ctx))
		case <-n.snapshotter.Done():
			return n.snapshotter.Err()
		case <-tick.C:
		}
	}
}
