package erofs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/fanotify"
)

// guard answers the kernel's questions about one device.
type guard struct {
	b      *Backend
	device *device.Device
	watch  *fanotify.Watch
	stop   context.CancelFunc
	done   chan struct{} // closed when nobody answers any more
	users  int           // guarded by Backend.mu
	owned  bool          // the device is released with the guard
}

// namePrefix begins the names of devices' files in the keeper.
const namePrefix = "erofs-"

// keeperName names a device's files in the keeper.
func keeperName(k device.Key) string { return namePrefix + hex.EncodeToString(k[:]) }

// Reclaim takes over the guards in the keeper that no adopted mount has asked for:
// of file systems that lost their mount while something was open in them. names
// is what the keeper has, and load opens a device. What cannot be taken over is
// dropped. The guards stay until their devices are complete.
func (b *Backend) Reclaim(names []string, load func(device.Key) (*device.Device, error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, namePrefix)
		if !ok {
			continue
		}
		key, err := chunkfmt.ParseDigest("sha256:" + digits)
		if err == nil && b.guarded[key] != nil {
			continue
		}
		if err == nil {
			err = b.reclaim(key, load)
		}
		if err != nil {
			b.o.Log.Warn("what the keeper holds of an earlier mount is given up", "name", name, "error", err)
			errs = append(errs, b.o.Keeper.Drop(name))
		}
	}
	return errors.Join(errs...)
}

// reclaim takes over one guard. b.mu is held.
func (b *Backend) reclaim(key device.Key, load func(device.Key) (*device.Device, error)) error {
	d, err := load(key)
	if err != nil {
		return err
	}
	if d.Complete() {
		d.Release()
		return b.o.Keeper.Drop(keeperName(key))
	}
	g, err := b.resume(d)
	if err != nil {
		d.Release()
		return err
	}
	g.users, g.owned = 1, true
	b.guarded[key] = g
	return nil
}

// start guards a device that nobody guards.
func (b *Backend) start(d *device.Device) (_ *guard, err error) {
	w, err := fanotify.New(fanotify.Options{Log: b.o.Log})
	if err != nil {
		return nil, err
	}
	name := keeperName(d.Key())
	defer func() {
		if err != nil {
			err = errors.Join(err, b.o.Keeper.Drop(name), w.Close())
		}
	}()
	files := append(w.Files(), d.Writer())
	if err := b.o.Keeper.Put(name, nil, files...); err != nil {
		return nil, fmt.Errorf("give the group to the keeper: %w", err)
	}
	if err := w.Mark(d.Writer()); err != nil {
		return nil, err
	}
	return b.serve(d, w), nil
}

// resume guards a device with what the keeper has of an earlier process.
func (b *Backend) resume(d *device.Device) (_ *guard, err error) {
	_, files, err := b.o.Keeper.Get(keeperName(d.Key()))
	if err != nil {
		return nil, err
	}
	const group, ring, writer = 0, 1, 2
	if len(files) != writer+1 {
		closeAll(files)
		return nil, fmt.Errorf("the keeper has %d files of it, not %d", len(files), writer+1)
	}
	if err := d.SetWriter(files[writer]); err != nil {
		closeAll(files)
		return nil, err
	}
	// From here on the device owns its writer.
	ctx, cancel := context.WithTimeout(b.ctx, predecessorEnd)
	defer cancel()
	w, err := fanotify.Restore(ctx, files[group], files[ring], fanotify.Options{Log: b.o.Log})
	if err != nil {
		closeAll(files[:writer])
		return nil, err
	}
	if marked, err := w.Marked(d.Writer()); err != nil || !marked {
		return nil, errors.Join(err, errors.New("the keeper's group does not watch it"), w.Close())
	}
	return b.serve(d, w), nil
}

// predecessorEnd is how long the process before this one may take to end.
const predecessorEnd = 30 * time.Second

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// serve answers until the backend is closed or the guard ended.
func (b *Backend) serve(d *device.Device, w *fanotify.Watch) *guard {
	ctx, stop := context.WithCancel(b.ctx)
	g := &guard{b: b, device: d, watch: w, stop: stop, done: make(chan struct{})}
	b.wg.Go(func() {
		defer close(g.done)
		err := w.Serve(ctx, func(ctx context.Context, off, n int64) error {
			return b.o.Filler.Fill(ctx, d, off, n)
		})
		if err != nil && ctx.Err() == nil {
			b.o.Log.Error("a device is not answered for any more: its readers wait until the snapshotter is restarted", "device", d.Key(), "error", err)
		}
	})
	b.wg.Go(func() {
		select {
		case <-d.Done():
			b.completed(g)
		case <-ctx.Done():
		}
	})
	return g
}

// completed takes the guard of a device away that needs none any more. Readers
// that still wait are let go on by the kernel, onto what they wait for.
func (b *Backend) completed(g *guard) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.guarded[g.device.Key()] != g {
		return
	}
	delete(b.guarded, g.device.Key())
	if err := errors.Join(g.watch.Unmark(), g.end()); err != nil {
		b.o.Log.Warn("the guard of a complete device could not be taken away", "device", g.device.Key(), "error", err)
	}
}

// end takes a guard away whose device no file system uses, or that is complete.
func (g *guard) end() error {
	g.stop()
	<-g.done
	if g.owned {
		defer g.device.Release()
	}
	return errors.Join(g.b.o.Keeper.Drop(keeperName(g.device.Key())), g.watch.Close())
}

// close closes what a guard has open; the keeper's copies stay.
func (g *guard) close() error { return g.watch.Close() }
