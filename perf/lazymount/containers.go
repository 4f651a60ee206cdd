package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/perf/internal/containerd"
)

// containers measures how long it takes until the last of many containers of an
// image is up that are started at once: has printed the first byte of what the
// image's command prints.
func containers(ctx context.Context, l *lab, r *result) error {
	img, err := l.real(ctx)
	if err != nil {
		return err
	}
	for _, backend := range l.o.backends {
		c := &crowd{img: img, backend: backend}
		for i := range l.o.repeat {
			sides := []func(context.Context, *trial) error{c.lazy, c.unpacked}
			if i%2 == 1 { // neither is always the first
				sides[0], sides[1] = sides[1], sides[0]
			}
			for _, side := range sides {
				if err := l.trial(ctx, side); err != nil {
					return fmt.Errorf("%s: %w", backend, err)
				}
			}
		}
		c.report(r, l.o.containers)
	}
	return nil
}

// crowd is many containers.
type crowd struct {
	img     *image
	backend string

	up, local, again, localAgain []float64 // seconds
	fetched, devices             []float64
}

func (c *crowd) report(r *result, n int) {
	first := fmt.Sprintf("%d at once, the last is up", n)
	against := "unpacked on overlayfs"
	r.add(figure{Mode: "containers", With: c.backend, Name: first + ", nothing on the node", Unit: "s", Values: c.up, Against: against, References: c.local, Goal: atMost(1.1)})
	r.add(figure{Mode: "containers", With: c.backend, Name: first + ", a second time, when the image is complete", Unit: "s", Values: c.again, Against: against, References: c.localAgain, Goal: atMost(1.1)})
	r.add(figure{Mode: "containers", With: c.backend, Name: "bytes taken from dfdaemon", Unit: "of those present", Values: c.fetched, Goal: atMost(1.001)})
	r.add(figure{Mode: "containers", With: c.backend, Name: "device files", Unit: "of the image's devices", Values: c.devices, Goal: atMost(1)})
}

// start starts containers at once and returns when the last was up, in seconds.
func (t *trial) start(ctx context.Context, d *containerd.Daemon, img *image, prefix string) (float64, error) {
	g, ctx := errgroup.WithContext(ctx)
	up := make([]time.Duration, t.o.containers)
	begin := time.Now()
	for i := range up {
		g.Go(func() error {
			late := time.Since(begin)
			s, err := d.Run(ctx, img.ref(), prefix+strconv.Itoa(i), img.command)
			up[i] = late + s.First
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	last := time.Duration(0)
	for _, d := range up {
		last = max(last, d)
	}
	return last.Seconds(), nil
}

// both starts the containers with cold caches, and again after what rest waits for.
func (t *trial) both(ctx context.Context, d *containerd.Daemon, img *image, rest func() error) (cold, warm float64, err error) {
	if err = t.cool(); err != nil {
		return 0, 0, err
	}
	if cold, err = t.start(ctx, d, img, "cold"); err != nil {
		return 0, 0, err
	}
	if err = rest(); err != nil {
		return 0, 0, err
	}
	warm, err = t.start(ctx, d, img, "warm")
	return cold, warm, err
}

// unpacked starts containers of the unpacked image.
func (c *crowd) unpacked(ctx context.Context, t *trial) error {
	d, err := t.plain(ctx, nodeHosts[0])
	if err != nil {
		return err
	}
	if err := d.Pull(ctx, c.img.ref()); err != nil {
		return err
	}
	first, second, err := t.both(ctx, d, c.img, func() error { return nil })
	c.local, c.localAgain = append(c.local, first), append(c.localAgain, second)
	t.o.log("overlayfs: %.2f s, then %.2f s", first, second)
	return err
}

// lazy starts containers of an image of which nothing but the index is there.
func (c *crowd) lazy(ctx context.Context, t *trial) error {
	if err := t.startSupernode(ctx); err != nil {
		return err
	}
	n, err := t.startNode(ctx, nodeHosts[0], c.backend)
	if err != nil {
		return err
	}
	if err := n.containerd.Pull(ctx, c.img.ref()); err != nil {
		return err
	}
	first, second, err := t.both(ctx, n.containerd, c.img, func() error { return n.awaitComplete(ctx, c.img) })
	if err != nil {
		return err
	}
	c.up, c.again = append(c.up, first), append(c.again, second)
	t.o.log("%s: %.2f s, then %.2f s", c.backend, first, second)
	return c.fetches(ctx, n)
}

// fetches counts what was fetched.
func (c *crowd) fetches(ctx context.Context, n *node) error {
	m, err := n.mounted(ctx, c.img)
	if err != nil {
		return err
	}
	x, err := n.snapshotter.Metrics(ctx)
	if err != nil {
		return err
	}
	plain := x.Sum(`damselfly_mount_bytes_total{form="plain",why="demand"}`) + x.Sum(`damselfly_mount_bytes_total{form="plain",why="ahead"}`)
	c.fetched = append(c.fetched, float64(plain)/float64(m.GetPresentBytes()))
	use, err := apiv1.NewLazyClient(n.conn).DeviceUsage(ctx, &apiv1.DeviceUsageRequest{})
	if err != nil {
		return fmt.Errorf("ask for the devices: %w", err)
	}
	files, err := filepath.Glob(n.path(n.host, "s", "data", "devices", "*", "data"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no device file: %w", os.ErrNotExist)
	}
	c.devices = append(c.devices, float64(len(files))/float64(use.GetDevices()))
	return nil
}
