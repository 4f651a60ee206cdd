package lazy

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Registry opens the repository of a reference for reading, by the node's own
// right.
type Registry func(ctx context.Context, ref image.Ref) (*image.Source, error)

const (
	// keepYes is how long the indexes of an image are remembered after a lookup:
	// for its other layers, and the same image in another namespace.
	keepYes = 2 * time.Minute
	// keepPassing is the same for what is wrong with the node or the network.
	keepPassing = 5 * time.Second
	// maxLookups bounds the lookups at a time: each may have a large image's
	// indexes in memory.
	maxLookups = 8
	// maxLoaded is of how many images the indexes stay in memory for the mount
	// that follows a lookup. Of others they are read from disk again.
	maxLoaded = 4
)

// known is an image whose trusted indexes are on this node.
type known struct {
	repository string
	manifest   digest.Digest
	trustedBy  string
	layers     []knownLayer
	byChain    map[digest.Digest]int
}

// knownLayer is one layer of an image.
type knownLayer struct {
	chain   digest.Digest
	index   digest.Digest
	devices []device.Key
}

// chain is the chain of all layers.
func (im *known) chain() Chain {
	c := Chain{Manifest: im.manifest}
	for _, l := range im.layers {
		c.ID = l.chain
		c.Layers = append(c.Layers, Layer{Index: l.index, Repository: im.repository})
	}
	return c
}

// outcome is what a lookup has come to. Whoever has one from find gives it back
// with done: meanwhile its indexes are held.
type outcome struct {
	ref    string
	image  *known
	reason snapshots.Reason
	// mounting says that somebody sees to the mount of the image.
	mounting atomic.Bool

	// Guarded by lookups.mu.
	until  time.Time
	refs   int
	loaded []*chunkfmt.Index // to save decoding them again; dropped soon
}

// lookups finds the indexes of images. Equal lookups share one, and what it came
// to counts for a while.
type lookups struct {
	registry Registry
	policy   func(ctx context.Context) (*trust.Policy, error)
	// refuseBound makes nothing of what only the image's author vouches for.
	refuseBound bool
	indexes     *indexes
	log         *slog.Logger
	now         func() time.Time
	after       func(time.Duration) <-chan time.Time
	// timeout is how long a pull waits for a lookup, keepNo how long it counts
	// that there is nothing.
	timeout, keepNo time.Duration

	ctx   context.Context //nolint:containedctx // lookups go on when the pull does not wait any more
	wg    sync.WaitGroup
	slots chan struct{}

	mu      sync.Mutex
	closed  bool
	flights map[string]*flight
	kept    map[string]*outcome // by key
	loaded  []*outcome          // those that have indexes in memory, oldest first
}

// flight is a lookup under way.
type flight struct {
	landed chan struct{}
	o      *outcome
}

// key names the image of a request. Containerd 1.6 does not say which of the
// images behind a reference it is: there the layer tells them apart.
func (r *request) key() string {
	if r.manifest == "" {
		return r.ref.String() + " layer " + r.layer.String()
	}
	return r.ref.String() + " " + r.manifest.String()
}

// find returns the image of a request, or why there is none. It takes at most
// about l.timeout; a lookup that takes longer goes on, for the next to ask.
func (l *lookups) find(ctx context.Context, r request) *outcome {
	var late <-chan time.Time
	for {
		o, f := l.join(r) //nolint:contextcheck // a lookup goes on when the pull does not wait any more
		if o != nil {
			return o
		}
		if late == nil {
			late = l.after(l.timeout)
		}
		select {
		case <-f.landed:
			if l.take(f.o) {
				return f.o
			}
		case <-late:
			return refused(Late, fmt.Sprintf("the index of %s was not found within %s", r.ref, l.timeout))
		case <-ctx.Done():
			return refused(Late, ctx.Err().Error())
		}
	}
}

func refused(code, detail string) *outcome {
	return &outcome{reason: snapshots.Reason{Code: code, Detail: detail}}
}

// join returns an outcome that counts or else the lookup under way.
func (l *lookups) join(r request) (*outcome, *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.get(r); o != nil {
		o.refs++
		return o, nil
	}
	key := r.key()
	f := l.flights[key]
	if f == nil {
		if l.closed {
			return refused(Unreachable, "the snapshotter is ending"), nil
		}
		f = &flight{landed: make(chan struct{})}
		l.flights[key] = f
		l.wg.Go(func() { l.fly(r, f) })
	}
	return nil, f
}

// get returns the outcome that counts for a request. l.mu is held.
func (l *lookups) get(r request) *outcome {
	now := l.now()
	if o := l.kept[r.key()]; o != nil && now.Before(o.until) {
		return o
	}
	if r.manifest != "" {
		return nil
	}
	for _, o := range l.kept {
		if o.image == nil || o.ref != r.ref.String() || !now.Before(o.until) {
			continue
		}
		if _, ok := o.image.byChain[r.chain]; ok {
			return o
		}
	}
	return nil
}

// take references the outcome of a flight, unless it was dropped already.
func (l *lookups) take(o *outcome) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.image != nil && o.refs == 0 {
		return false
	}
	o.refs++
	return true
}

// done gives an outcome back.
func (l *lookups) done(o *outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(o)
}

// drop is done with l.mu held. The last releases what an outcome holds.
func (l *lookups) drop(o *outcome) {
	if o.refs--; o.refs > 0 || o.image == nil {
		return
	}
	l.unload(o)
	for _, layer := range o.image.layers {
		l.indexes.release(layer.index)
	}
}

// fly does a lookup and keeps what it comes to.
func (l *lookups) fly(r request, f *flight) {
	ctx, cancel := context.WithTimeout(l.ctx, 10*l.timeout)
	defer cancel()
	o, loaded := l.look(ctx, r)
	o.ref, f.o = r.ref.String(), o
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep(r.key(), o, loaded)
	delete(l.flights, r.key())
	close(f.landed)
}

// keep keeps an outcome and drops those whose time is over. l.mu is held.
func (l *lookups) keep(key string, o *outcome, loaded []*chunkfmt.Index) {
	now := l.now()
	switch {
	case o.image != nil:
		o.until = now.Add(keepYes)
	case passing(o.reason.Code):
		o.until = now.Add(min(l.keepNo, keepPassing))
	default:
		o.until = now.Add(l.keepNo)
	}
	l.expireLocked(now)
	if old := l.kept[key]; old != nil {
		l.drop(old)
	}
	l.kept[key] = o
	o.refs++
	if o.image == nil {
		return
	}
	o.loaded = loaded
	if l.loaded = append(l.loaded, o); len(l.loaded) > maxLoaded {
		l.unload(l.loaded[0])
	}
}

func (l *lookups) expireLocked(now time.Time) {
	for k, o := range l.kept {
		if !now.Before(o.until) {
			delete(l.kept, k)
			l.drop(o)
		}
	}
}

// expire drops what does not count any more.
func (l *lookups) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked(l.now())
}

// unload drops the indexes of an outcome from memory. l.mu is held.
func (l *lookups) unload(o *outcome) {
	o.loaded = nil
	for i, other := range l.loaded {
		if other == o {
			l.loaded = append(l.loaded[:i:i], l.loaded[i+1:]...)
			return
		}
	}
}

// inMemory returns the indexes of a chain's layers if a lookup has them.
func (l *lookups) inMemory(c Chain) []*chunkfmt.Index {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.loaded {
		if all := o.image.chain().Layers; len(all) >= len(c.Layers) && sameIndexes(all[:len(c.Layers)], c.Layers) {
			return o.loaded[:len(c.Layers)]
		}
	}
	return nil
}

// mounted drops the indexes of an image that is mounted.
func (l *lookups) mounted(c Chain) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.kept {
		if o.loaded != nil && o.image.chain().ID == c.ID {
			l.unload(o)
		}
	}
}

// close waits for the lookups under way, whose context has ended.
func (l *lookups) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}
