package erofs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
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

	// Guarded by Backend.mu.
	users     int  // file systems, each of which keeps the device open
	lingering int  // of them are without a mount
	pinned    bool // one of users is unknown
}

// namePrefix begins the names of devices' files in the keeper.
const namePrefix = "erofs-"

// keeperName names a device's files in the keeper.
func keeperName(k device.Key) string { return namePrefix + hex.EncodeToString(k[:]) }

// metaLingering is kept with the files of a device that has users without a
// mount: the next process cannot know when they end.
const metaLingering = "lingering"

// errNoGuard says that nothing guards a device.
var errNoGuard = errors.New("nobody holds its group any more")

// Reclaim takes over the guards in the keeper that no adopted mount has asked for:
// of file systems that lost their mount while something was open in them. names
// is what the keeper has, and load opens a device. What guards nothing is
// dropped. What cannot be taken over now stays in the keeper, and its readers
// wait. The guards stay until their devices are complete.
func (b *Backend) Reclaim(names []string, load func(device.Key) (*device.Device, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settled = true
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, namePrefix)
		if !ok {
			continue
		}
		key, err := chunkfmt.ParseDigest("sha256:" + digits)
		if err != nil {
			b.drop(name)
			continue
		}
		if b.guarded[key] != nil {
			continue
		}
		if err := b.reclaim(key, load); err != nil {
			b.unsettled[key] = true
			b.o.Log.Error("what the keeper holds of an earlier mount cannot be taken over: its readers wait until the snapshotter is restarted",
				"device", key, "error", err)
		}
	}
}

// drop has the keeper forget a name. b.mu is held.
func (b *Backend) drop(name string) {
	if err := b.o.Keeper.Drop(name); err != nil {
		b.o.Log.Warn("a keeper will be told later that a group has ended", "name", name, "error", err)
	}
}

// reclaim takes over one guard. b.mu is held.
func (b *Backend) reclaim(key device.Key, load func(device.Key) (*device.Device, error)) error {
	d, err := load(key)
	if err != nil {
		return err
	}
	defer d.Release()
	g, err := b.resume(d)
	if errors.Is(err, errNoGuard) {
		b.o.Log.Warn("what the keeper holds of an earlier mount is given up", "device", key, "error", err)
		b.drop(keeperName(key))
		return nil
	}
	if err != nil {
		return err
	}
	if d.Complete() { // the process before has ended before it could do this
		if err := g.end(); err != nil {
			b.o.Log.Warn("the guard of a complete device could not be taken away as it should", "device", key, "error", err)
		}
		return nil
	}
	g.pin()
	b.guarded[key] = g
	return nil
}

// pin gives a guard a user of which nothing is known. b.mu is held.
func (g *guard) pin() {
	if g.pinned {
		return
	}
	g.pinned = true
	g.users++
	g.device.Retain()
}

// begin guards a device for a new mount: with what the keeper has, because that
// may be all that keeps readers of an earlier mount from zeros.
func (b *Backend) begin(d *device.Device) (*guard, error) {
	if b.settled && !b.unsettled[d.Key()] {
		return b.start(d)
	}
	g, err := b.resume(d)
	if errors.Is(err, errNoGuard) {
		return b.start(d)
	}
	if err != nil {
		return nil, err
	}
	g.pin()
	delete(b.unsettled, d.Key())
	return g, nil
}

// start guards a device that nobody guards.
func (b *Backend) start(d *device.Device) (_ *guard, err error) {
	w, err := fanotify.New(fanotify.Options{Log: b.o.Log})
	if err != nil {
		return nil, err
	}
	g := &guard{b: b, device: d, watch: w}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Unmark(), b.o.Keeper.Drop(keeperName(d.Key())), w.Close())
		}
	}()
	if err := g.put(); err != nil {
		return nil, fmt.Errorf("give the group to the keeper: %w", err)
	}
	if err := w.Mark(d.Writer()); err != nil {
		return nil, err
	}
	g.serve()
	return g, nil
}

// restart guards a device whose group is lost.
func (b *Backend) restart(d *device.Device) (*guard, error) {
	// The group may have been there yet when the device was opened, and then the
	// device's writer would ask, too: itself.
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := d.SetWriter(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return b.start(d)
}

// put has the keeper hold what it takes to resume.
func (g *guard) put() error {
	var meta []byte
	if g.lingering > 0 || g.pinned {
		meta = []byte(metaLingering)
	}
	return g.b.o.Keeper.Put(keeperName(g.device.Key()), meta, append(g.watch.Files(), g.device.Writer())...)
}

// resume guards a device with what the keeper has of an earlier process. The
// error wraps errNoGuard if that is nothing, or guards nothing. b.mu is held.
func (b *Backend) resume(d *device.Device) (*guard, error) {
	meta, files, err := b.o.Keeper.Get(keeperName(d.Key()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errNoGuard, err)
	}
	if err != nil {
		return nil, err
	}
	const group, ring, writer = 0, 1, 2
	if len(files) != writer+1 {
		closeAll(files)
		return nil, fmt.Errorf("the keeper has %d files of it, not %d: %w", len(files), writer+1, errNoGuard)
	}
	if err := d.SetWriter(files[writer]); err != nil {
		closeAll(files)
		return nil, fmt.Errorf("%w: %w", errNoGuard, err)
	}
	// From here on the device owns its writer.
	ctx, cancel := context.WithTimeout(b.ctx, predecessorEnd)
	defer cancel()
	w, err := fanotify.Restore(ctx, files[group], files[ring], fanotify.Options{Log: b.o.Log})
	if err != nil {
		closeAll(files[:writer])
		if errors.Is(err, fanotify.ErrCorrupt) {
			err = fmt.Errorf("%w: %w", errNoGuard, err)
		}
		return nil, err
	}
	marked, err := w.Marked(d.Writer())
	if err == nil && !marked {
		err = fmt.Errorf("the keeper's group does not watch it: %w", errNoGuard)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	g := &guard{b: b, device: d, watch: w}
	if string(meta) == metaLingering {
		g.pin()
	}
	g.serve()
	return g, nil
}

// predecessorEnd is how long the process before this one may take to end.
const predecessorEnd = 30 * time.Second

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// serve answers until the backend is closed or the guard ended.
func (g *guard) serve() {
	b, d := g.b, g.device
	ctx, stop := context.WithCancel(b.ctx)
	g.stop, g.done = stop, make(chan struct{})
	b.wg.Go(func() {
		defer close(g.done)
		err := g.watch.Serve(ctx, func(ctx context.Context, off, n int64) error {
			return b.o.Filler.Fill(ctx, d, off, n)
		})
		if err != nil && ctx.Err() == nil {
			b.o.Log.Error("a device is not answered for any more: its readers wait until the snapshotter is restarted", "device", d.Key(), "error", err)
		}
	})
	b.wg.Go(func() { g.awaitComplete(ctx) })
}

// syncAgain is when a device is synced again that could not be.
const syncAgain = 5 * time.Second

// awaitComplete takes the guard away when the device is complete, or returns when
// somebody else has.
func (g *guard) awaitComplete(ctx context.Context) {
	for {
		select {
		case <-g.device.Done():
		case <-ctx.Done():
			return
		}
		// A successor must not find it incomplete and without a guard.
		err := g.device.Sync()
		if err == nil && g.completed() {
			return
		}
		if err == nil {
			continue // some of it was dropped meanwhile
		}
		g.b.o.Log.Error("a complete device stays guarded: it could not be synced", "device", g.device.Key(), "error", err)
		timer := time.NewTimer(syncAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// completed takes the guard of a device away that needs none any more, and
// reports whether it is gone.
func (g *guard) completed() bool {
	b := g.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.guarded[g.device.Key()] != g {
		return true
	}
	if !g.device.Complete() {
		return false
	}
	delete(b.guarded, g.device.Key())
	if err := g.end(); err != nil {
		b.o.Log.Warn("the guard of a complete device could not be taken away as it should", "device", g.device.Key(), "error", err)
	}
	return true
}

// end takes a guard away whose device no file system uses, or that is complete:
// readers that still wait are let go on by the kernel, onto what they wait for.
// The mark goes first: a keeper that cannot be reached now would go on to hold a
// group that stops readers and is answered by nobody. b.mu is held.
func (g *guard) end() error {
	unmarked := g.watch.Unmark()
	if g.device.Complete() {
		g.drain()
	}
	g.stop()
	<-g.done
	if g.pinned {
		defer g.device.Release()
	}
	return errors.Join(unmarked, g.b.o.Keeper.Drop(keeperName(g.device.Key())), g.watch.Close())
}

// drainLimit is how long the last readers of a complete device may take.
const drainLimit = 200 * time.Millisecond

// drain waits until those are answered who were asked about, since the device is
// not watched any more.
func (g *guard) drain() {
	timer := time.NewTimer(drainLimit)
	defer timer.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for g.watch.Pending() > 0 {
		select {
		case <-tick.C:
		case <-timer.C:
			return
		case <-g.done:
			return
		}
	}
}
