package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Supernode is the daemon's link to its supernode.
type Supernode interface {
	Send(*apiv1.PeerMessage)
	// Connected reports whether there is a connection, and since when so.
	Connected() (bool, time.Time)
	// Tried is closed when the first attempt to connect has ended.
	Tried() <-chan struct{}
}

// From says where bytes came from.
type From string

// Where bytes come from.
const (
	FromPeer      From = "peer"
	FromSupernode From = "supernode"
	FromOrigin    From = "origin"
	FromLocal     From = "local"
)

// Options configures an Engine. Store, Supernode, Pieces and Origin are
// required.
type Options struct {
	Store     *piecestore.Store
	Supernode Supernode
	Pieces    *pieces.Client
	Origin    *origin.Client
	Log       *slog.Logger
	Now       func() time.Time

	// Grace is how long a lost supernode is waited for before the origin is
	// asked; default 2 s.
	Grace time.Duration
	// OriginReads bounds the reads from origins by this node, which happen
	// without a supernode only; default 4.
	OriginReads int
	// Linger is how long a download goes on that nobody uses; default 10 s.
	Linger time.Duration
	// Window is how many bytes ahead of a reader pieces are fetched in order;
	// default 8 MiB.
	Window int64

	// Received is told of every verified piece, Sent of bytes read from the
	// store without a download, Rejected of every bad piece.
	Received func(from From, bytes int64)
	Rejected func(reason string)
}

// Engine runs the downloads of one daemon. It is a swarm.Handler.
type Engine struct {
	o       Options
	ctx     context.Context //nolint:containedctx // the lifetime of downloads, which outlive the requests that start them
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	seed    uint64
	origins chan struct{} // one token per read from an origin

	mu          sync.Mutex
	downloads   map[task.ID]*download
	pending     map[uint64]*pending // URLs whose task the supernode is finding out
	commands    map[uint64]context.CancelFunc
	quarantined map[string]time.Time
	lastRequest uint64
	from        map[task.ID]map[From]int64 // bytes received, by task and sender
}

// New returns an engine.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	setDefault(&o.Grace, 2*time.Second)
	setDefault(&o.OriginReads, 4)
	setDefault(&o.Linger, 10*time.Second)
	setDefault(&o.Window, 8<<20)
	if o.Received == nil {
		o.Received = func(From, int64) {}
	}
	if o.Rejected == nil {
		o.Rejected = func(string) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Engine{
		o: o, ctx: ctx, cancel: cancel, seed: rand.Uint64(), // #nosec G404 -- breaks ties
		origins:   make(chan struct{}, o.OriginReads),
		downloads: map[task.ID]*download{}, pending: map[uint64]*pending{},
		commands: map[uint64]context.CancelFunc{}, quarantined: map[string]time.Time{},
		from: map[task.ID]map[From]int64{},
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Stop ends all downloads; what waits for them fails.
func (e *Engine) Stop() { e.cancel() }

// Close ends all downloads and waits for them.
func (e *Engine) Close() {
	e.cancel()
	e.wg.Wait()
}

// errStopping is why a download ends when the daemon does.
var errStopping = errors.New("the daemon is stopping")

// Request says what to open and how.
type Request struct {
	wire.Source
	Priority pieces.Priority
	// Whole: all of the content is wanted. Otherwise only what is read.
	Whole bool
	// Ranges are wanted at once.
	Ranges []Range
	// Authorized: that the caller may read is settled. Otherwise the origin's
	// answer to the credential decides.
	Authorized bool

	command uint64
}

// Range is a range of content in bytes.
type Range struct{ Offset, Length int64 }

// Failure is why a task cannot be had, with the origin's answer if that is why.
type Failure struct {
	ID        task.ID
	Status    int // HTTP status of the origin; 0 if it did not answer
	Header    map[string][]string
	Message   string
	Permanent bool
}

// Error returns the message.
func (f *Failure) Error() string { return f.Message }

// ErrUnsettled means that the content is here or on its way for somebody else, and whether
// this caller may read it is not settled. The caller asks the origin, and then
// opens with Authorized set.
var ErrUnsettled = errors.New("the right to read is not settled")

// Open returns a handle on the content that r names. The caller must Close it.
// It fails with a *Failure when the origin refuses or cannot be read, and with
// ErrUnsettled.
func (e *Engine) Open(ctx context.Context, r Request) (*Handle, error) {
	if r.ID == "" {
		return e.openURL(ctx, r)
	}
	if h := e.local(r); h != nil {
		if !r.Authorized {
			h.Close()
			return nil, ErrUnsettled
		}
		return h, nil
	}
	return e.join(ctx, r)
}

// local returns a handle on a task that the store has complete.
func (e *Engine) local(r Request) *Handle {
	t, ok := e.o.Store.Get(r.ID)
	if !ok {
		return nil
	}
	if !t.Complete() {
		t.Release()
		return nil
	}
	t.Touch()
	return &Handle{e: e, r: r, t: t}
}

// join takes part in the download of r.ID, which it starts if there is none.
func (e *Engine) join(ctx context.Context, r Request) (*Handle, error) {
	d, err := e.use(r)
	if err != nil {
		return nil, err
	}
	h := &Handle{e: e, r: r, d: d}
	if err := h.admit(ctx); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// admit waits until the handle may be used. The answer to the first request of
// a download settles the rights of whoever made it, of nobody else.
func (h *Handle) admit(ctx context.Context) (err error) {
	d := h.d
	if !h.r.Authorized {
		select {
		case err = <-d.settled:
		case <-ctx.Done():
			err = fmt.Errorf("opening %s: %w", h.r.ID.Short(), context.Cause(ctx))
		}
		if err != nil {
			return err
		}
	}
	select {
	case <-d.ready:
	case <-ctx.Done():
		return fmt.Errorf("opening %s: %w", h.r.ID.Short(), context.Cause(ctx))
	}
	h.t, err = d.task()
	return err
}

// use returns the download of r.ID with one more user. A request whose right is
// not settled may start a download, but not take part in one: it must neither
// be served by somebody else's right nor lend the download its credential.
func (e *Engine) use(r Request) (*download, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return nil, errStopping
	}
	d := e.downloads[r.ID]
	if d != nil && !r.Authorized {
		return nil, ErrUnsettled
	}
	if d == nil || !d.enter(r) {
		d = newDownload(e, r, d)
		e.downloads[r.ID] = d
		e.wg.Go(func() {
			d.run(e.ctx)
			e.mu.Lock()
			if e.downloads[d.id] == d {
				delete(e.downloads, d.id)
			}
			e.mu.Unlock()
		})
	}
	return d, nil
}

// find returns the download of an id in a message, nil if there is none.
func (e *Engine) find(rawID string) *download {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.downloads[task.ID(rawID)]
}

// all returns the downloads.
func (e *Engine) all() []*download {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*download, 0, len(e.downloads))
	for _, d := range e.downloads {
		all = append(all, d)
	}
	return all
}

func (e *Engine) nextRequest() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastRequest++
	return e.lastRequest
}
