package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// mounts measures what many mounts cost: of images that differ, of which nothing
// has been read, and of one image.
func mounts(ctx context.Context, l *lab, r *result) error {
	l.o.log("making %d images", l.o.mounts)
	var images []*image
	for i := range l.o.mounts {
		name := fmt.Sprintf("small%d", i)
		img, err := l.synthetic(ctx, name, func() []file { return small(i) })
		if err != nil {
			return err
		}
		images = append(images, img)
	}
	for _, backend := range l.o.backends {
		for _, kind := range []struct {
			name   string
			images []*image
		}{{"images", images}, {"views of one image", images[:1]}} {
			err := l.trial(ctx, func(ctx context.Context, t *trial) error { return t.mounts(ctx, r, backend, kind.name, kind.images) })
			if err != nil {
				return fmt.Errorf("%s: %s: %w", backend, kind.name, err)
			}
		}
	}
	return nil
}

// small is a small image of its own: its content lies on a device.
func small(i int) []file {
	files := []file{{"name", fmt.Appendf(nil, "image %d\n", i)}}
	for j := range 8 {
		files = append(files, file{fmt.Sprintf("dir/file%d", j), noise(uint64(1000+8*i+j), 48<<10)}) // #nosec G115 -- small
	}
	return files
}

func (t *trial) mounts(ctx context.Context, r *result, backend, kind string, images []*image) error {
	if err := t.startSupernode(ctx); err != nil {
		return err
	}
	n, err := t.startNode(ctx, nodeHosts[0], backend, demandOnly...)
	if err != nil {
		return err
	}
	for _, img := range images {
		if err := n.containerd.Pull(ctx, img.ref()); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("%d %s", t.o.mounts, kind)
	add := func(what, unit string, value float64, g *goal) {
		r.add(figure{Mode: "mounts", With: backend, Name: name + ": " + what, Unit: unit, Values: []float64{value}, Goal: g})
	}
	begin := time.Now()
	for i := range t.o.mounts {
		if err := n.view(ctx, images[i%len(images)]); err != nil {
			return err
		}
	}
	add("a mount, with ctr", "ms", time.Since(begin).Seconds()*1000/float64(t.o.mounts), nil)
	if err := n.useOfMounts(add, ""); err != nil {
		return err
	}
	begin = time.Now()
	if err := n.snapshotter.Restart(ctx); err != nil {
		return err
	}
	add("restart of the snapshotter", "s", time.Since(begin).Seconds(), nil)
	if err := n.useOfMounts(add, ", restarted"); err != nil {
		return err
	}
	adopted, err := n.adopted(ctx, images) // which completes small images
	if err != nil {
		return err
	}
	add("adopted", "of the mounts", adopted, atLeast(1))
	return nil
}

// useOfMounts reports memory and descriptors of those who hold mounts.
func (n *node) useOfMounts(add func(string, string, float64, *goal), when string) error {
	for _, p := range []struct {
		name string
		*fleet.Process
		goal *goal
	}{{"snapshotter", n.snapshotter.Process, atMost(300)}, {"keeper", n.snapshotter.Keeper(), nil}, {"dfdaemon", n.dfdaemon.Process, nil}} {
		use, err := p.Use()
		if err != nil {
			return err
		}
		add(p.name+when+", RSS", "MiB", float64(use.RSS)/(1<<20), p.goal)
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
		if err != nil {
			return fmt.Errorf("count the descriptors of the %s: %w", p.name, err)
		}
		add(p.name+when+", descriptors", "", float64(len(fds)), nil)
	}
	return nil
}

// adopted reads a file in each mount, which no process had read before, and returns
// how many of the mounts have it.
func (n *node) adopted(ctx context.Context, images []*image) (float64, error) {
	right := 0
	for i, img := range images {
		m, err := n.mounted(ctx, img)
		if err != nil {
			n.complain(err)
			continue
		}
		want := small(i)[1]
		got, err := os.ReadFile(filepath.Join(m.GetDirectory(), want.name)) // #nosec G304 -- of the image
		if err == nil && string(got) != string(want.data) {
			return 0, fmt.Errorf("%s of %s has the wrong content", want.name, img.name)
		}
		if err == nil {
			right++
		}
		n.complain(err)
		if ctx.Err() != nil {
			return 0, errors.Join(ctx.Err(), context.Cause(ctx))
		}
	}
	return float64(right) / float64(len(images)), nil
}
