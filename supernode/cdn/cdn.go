package cdn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Events is told what happens to objects. Calls come from fetching goroutines
// and must not block.
type Events interface {
	// Published: more pieces of id may be served.
	Published(id task.ID)
	// Revoked: what was published of id is not to be trusted.
	Revoked(id task.ID, reason error)
	// Failed: the origin could not be read to the end of what was wanted.
	Failed(id task.ID, reason error)
}

// Options configures a Cache. Store, Origin and Events are required.
type Options struct {
	Store  *piecestore.Store
	Origin *origin.Client
	Events Events
	Log    *slog.Logger
	Now    func() time.Time

	// SpoolDir holds content of unknown length while it is read; default: the
	// system's directory for temporary files.
	SpoolDir string
	// Segment is how much one origin request asks for, in bytes; default
	// 16 MiB.
	Segment int64
	// Parallel is how many origin requests of one task run at a time; one
	// more is allowed for asked-for ranges. Default 4.
	Parallel int
	// AuthTTL is how long the origin's yes to a credential counts; default
	// 60 s.
	AuthTTL time.Duration
	// StandIn returns what to ask the origin for instead of content, when a
	// requester's right is to be checked: for content that the supernode has
	// made itself and the origin does not know. Default: nothing is stood in for.
	StandIn func(id task.ID, url string) (origin.Object, bool)
	// ResolveTTL is how long the validators of a URL count as current;
	// default 5 s.
	ResolveTTL time.Duration
}

// Range is a range of content in bytes.
type Range struct{ Offset, Length int64 }

// Request asks for content.
type Request struct {
	ID         task.ID // empty when the content is known by URL only
	URL        string
	Header     http.Header
	Credential origin.Credential
	// Authorized: that the requester may read is already settled.
	Authorized bool
	// Node is who asks. Of content that nodes want parts of, the whole is
	// fetched once a second one does, unless it has a variable table; "" is no
	// node.
	Node   string
	Whole  bool
	Ranges []Range
	// Ahead: nobody waits for the ranges. Those that somebody waits for go first.
	Ahead bool
	Table *task.Table // for a new task; nil: uniform
}

// credentials are what the origin is asked with on behalf of r: its own, or, if
// it has none and needs none, those the supernode is configured with.
func (r Request) credentials() []origin.Credential {
	if r.Authorized && r.Credential == (origin.Credential{}) {
		return nil
	}
	return []origin.Credential{r.Credential}
}

func (r Request) object(creds []origin.Credential) origin.Object {
	return origin.Object{URL: r.URL, Header: r.Header, Credentials: creds}
}

// Cache holds objects. Close ends its fetches.
type Cache struct {
	o       Options
	ctx     context.Context //nolint:containedctx // the lifetime of fetches, which outlive the requests that start them
	cancel  context.CancelFunc
	opening singleflight.Group
	auth    *authCache
	urls    *urlCache

	life sync.Mutex // keeps Close and the start of work apart; taken last
	wg   sync.WaitGroup

	mu      sync.Mutex
	objects map[task.ID]*Object
}

// New returns a cache over o.Store.
func New(o Options) *Cache {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Segment == 0 {
		o.Segment = 16 << 20
	}
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.AuthTTL == 0 {
		o.AuthTTL = 60 * time.Second
	}
	if o.ResolveTTL == 0 {
		o.ResolveTTL = 5 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Cache{
		o: o, ctx: ctx, cancel: cancel, objects: map[task.ID]*Object{},
		auth: newAuthCache(o.AuthTTL, o.Now), urls: newURLCache(o.ResolveTTL, o.Now),
	}
}

// spawn runs f on a goroutine that Close waits for; false once it is closing.
func (c *Cache) spawn(f func()) bool {
	c.life.Lock()
	defer c.life.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.wg.Go(f)
	return true
}

// Close ends all fetches and waits for them.
func (c *Cache) Close() {
	c.life.Lock()
	c.cancel()
	c.life.Unlock()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.objects {
		o.t.Release()
	}
	clear(c.objects)
}

// Ensure makes the object of r known, checks that r may have it, and starts
// fetching what r wants. It returns once the object's table is known. The
// caller must Release the object. A *origin.StatusError carries the origin's
// answer when that is why it failed.
func (c *Cache) Ensure(ctx context.Context, r Request) (*Object, error) {
	if r.ID == "" {
		return c.ensureURL(ctx, r)
	}
	for {
		if o := c.lookup(r.ID); o != nil {
			if err := c.authorize(ctx, r); err != nil {
				o.Release()
				return nil, err
			}
			o.want(r) //nolint:contextcheck // fetches outlive the requests that start them
			return o, nil
		}
		o, mine, err := c.open(ctx, r)
		if err != nil && !mine && retryWithOwn(err) && ctx.Err() == nil {
			continue // somebody else's credential failed, not this one's
		}
		if err != nil {
			return nil, err
		}
		if mine {
			c.accepted(r)
			o.want(r) //nolint:contextcheck // fetches outlive the requests that start them
			return o, nil
		}
		o.Release() // check this requester too
	}
}

// Known does what Ensure does if that needs nobody to be asked: the object is in
// memory and the right of r is settled. Otherwise it does nothing and returns
// nil.
func (c *Cache) Known(r Request) *Object {
	if r.ID == "" || !r.Authorized && !c.auth.has(r) {
		return nil
	}
	c.mu.Lock()
	o := c.objects[r.ID]
	if o != nil {
		o.refs++
	}
	c.mu.Unlock()
	if o != nil {
		o.want(r)
	}
	return o
}

// Damaged fetches a piece again that was found damaged on disk, if its object is
// in use; otherwise the next request does.
func (c *Cache) Damaged(id task.ID, piece int) {
	c.mu.Lock()
	o := c.objects[id]
	if o != nil {
		o.refs++
	}
	c.mu.Unlock()
	if o == nil {
		return
	}
	defer o.Release()
	o.mu.Lock()
	o.published.Remove(piece)
	o.verified = false
	o.wanted.Add(piece)
	o.mu.Unlock()
	o.fetch()
	o.verify()
}

// retryWithOwn reports whether another credential may fare better.
func retryWithOwn(err error) bool {
	var s *origin.StatusError
	return errors.As(err, &s) && !s.Temporary() || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// lookup returns a referenced object that is in memory or in the store.
func (c *Cache) lookup(id task.ID) *Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.objects[id]; ok {
		o.refs++
		return o
	}
	t, ok := c.o.Store.Get(id)
	if !ok {
		return nil
	}
	return c.insertLocked(id, t)
}

// insertLocked takes over the caller's reference to t.
func (c *Cache) insertLocked(id task.ID, t *piecestore.Task) *Object {
	o := newObject(c, id, t)
	c.objects[id] = o
	o.refs++
	return o
}

// open creates the object of r from the origin's answer to r's credential.
// mine says that the answer was to this very request rather than to an equal
// one of somebody else.
func (c *Cache) open(ctx context.Context, r Request) (o *Object, mine bool, err error) {
	_, err, _ = c.opening.Do(string(r.ID), func() (any, error) {
		mine = true
		var err error
		o, err = c.create(ctx, r)
		return nil, err
	})
	if err != nil {
		return nil, mine, err
	}
	if mine {
		return o, true, nil
	}
	if o = c.lookup(r.ID); o == nil {
		return nil, false, fmt.Errorf("opening %s: %w", r.ID.Short(), context.Canceled)
	}
	return o, false, nil
}

// create asks the origin for the start of the content, which also tells its
// length and whether ranges work, and makes the object. The answer's body is
// the first fetch. Who knows the table and wants parts gets no more than these.
func (c *Cache) create(ctx context.Context, r Request) (*Object, error) {
	at := span{0, c.o.Segment}
	switch {
	case r.Whole:
	case len(r.Ranges) == 0 && r.Table != nil:
		return c.createByHead(ctx, r)
	case len(r.Ranges) > 0 && r.Table != nil:
		if at = c.firstSpan(*r.Table, r.Ranges[0]); at.n == 0 {
			return c.createByHead(ctx, r)
		}
	case len(r.Ranges) > 0 && r.Ranges[0].Offset >= c.o.Segment:
		return c.createByHead(ctx, r)
	}
	body, err := c.openAt(ctx, r, at)
	if err != nil {
		return nil, err
	}
	if err := c.named(r, body.Info); err != nil {
		return nil, errors.Join(err, body.Close())
	}
	return c.adopt(r, body) //nolint:contextcheck // fetches outlive the requests that start them
}

// span is the n bytes of content at off.
type span struct{ off, n int64 }

// firstSpan returns the bytes of the pieces that hold rg, at most a segment of
// them but one piece; none for a range beyond the end.
func (c *Cache) firstSpan(table task.Table, rg Range) span {
	var s span
	first, end := table.Span(rg.Offset, rg.Length)
	for i := first; i < end; i++ {
		off, n := table.Piece(i)
		if i == first {
			s.off = off
		} else if s.n+n > c.o.Segment {
			break
		}
		s.n += n
	}
	return s
}

// named checks that what the origin has for r is what r names, as far as that
// can be told before it is read.
func (c *Cache) named(r Request, info origin.Info) error {
	if _, checkable := r.ID.Digest(); checkable || c.urlID(r, info) == r.ID {
		return nil
	}
	return fmt.Errorf("opening %s: %w: it is not %s any more", origin.RedactURL(r.URL), origin.ErrChanged, r.ID.Short())
}

// opened is the origin's first answer for some content. It ends with the
// request that caused it, until that is detached.
type opened struct {
	*origin.Body
	detach func() bool // false if the request has ended
	cancel context.CancelFunc
}

// Close ends the reading.
func (b *opened) Close() error {
	b.detach()
	err := b.Body.Close()
	b.cancel()
	return err
}

// openFirst opens the content of r from its beginning.
func (c *Cache) openFirst(ctx context.Context, r Request) (*opened, error) {
	return c.openAt(ctx, r, span{0, c.o.Segment})
}

func (c *Cache) openAt(ctx context.Context, r Request, at span) (*opened, error) {
	life, cancel := context.WithCancel(c.ctx)
	detach := context.AfterFunc(ctx, cancel)
	body, err := c.o.Origin.Open(life, r.object(r.credentials()), at.off, at.n) //nolint:contextcheck // fetches outlive the requests that start them
	if err != nil {
		detach()
		cancel()
		return nil, fmt.Errorf("opening %s at the origin: %w", origin.RedactURL(r.URL), err)
	}
	return &opened{Body: body, detach: detach, cancel: cancel}, nil
}

func (c *Cache) createByHead(ctx context.Context, r Request) (*Object, error) {
	info, err := c.o.Origin.Head(ctx, r.object(r.credentials()))
	if err != nil {
		return nil, fmt.Errorf("asking the origin about %s: %w", origin.RedactURL(r.URL), err)
	}
	if info.Length < 0 {
		return nil, fmt.Errorf("asking the origin about %s: it does not tell the length", origin.RedactURL(r.URL))
	}
	if err := c.named(r, info); err != nil {
		return nil, err
	}
	o, _, _, err := c.add(r, info, span{})
	return o, err
}

// adopt makes the object of r from the origin's first answer.
func (c *Cache) adopt(r Request, body *opened) (*Object, error) {
	info := body.Info
	if info.Length < 0 {
		spooled, err := c.spool(body)
		if err != nil {
			return nil, err
		}
		info.Length = spooled.n
		o, s, fresh, err := c.add(r, info, span{0, info.Length})
		if err != nil || !fresh {
			return o, errors.Join(err, spooled.Close())
		}
		if err := o.load(spooled, s); err != nil {
			o.Release()
			return nil, err
		}
		return o, nil
	}
	if !body.detach() {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", r.ID.Short(), context.Canceled), body.Close())
	}
	at := span{0, info.Length}
	if body.Ranged {
		at = span{body.Offset, body.N}
	}
	o, s, fresh, err := c.add(r, info, at)
	if err != nil || !fresh {
		return o, errors.Join(err, body.Close())
	}
	if !c.spawn(func() { o.work(s, body) }) {
		o.Release()
		return nil, errors.Join(fmt.Errorf("opening %s: %w", r.ID.Short(), context.Canceled), body.Close())
	}
	return o, nil
}

// add creates the store's task and the object. fresh is false if it was there.
// If it was not, s are the pieces within at, which the caller is to fetch.
func (c *Cache) add(r Request, info origin.Info, at span) (o *Object, s segment, fresh bool, err error) {
	table := task.Uniform(info.Length)
	if r.Table != nil && r.Table.Length == info.Length {
		table = *r.Table
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.objects[r.ID]; ok {
		o.refs++
		return o, s, false, nil
	}
	t, err := c.o.Store.Create(r.ID, table, origin.RedactURL(r.URL))
	if errors.Is(err, piecestore.ErrTableMismatch) {
		// Cut differently before; what is held of it stays useful.
		if existing, ok := c.o.Store.Get(r.ID); ok && existing.Table().Length == info.Length {
			t, err = existing, nil
		} else if ok {
			existing.Release()
		}
	}
	if err != nil {
		return nil, s, false, fmt.Errorf("storing %s: %w", r.ID.Short(), err)
	}
	o = c.insertLocked(r.ID, t)
	o.meta, o.url = metaOf(info), r.URL
	o.ranges = info.Ranges
	o.whole = r.Whole
	o.addSourceLocked(r) // nobody else knows o yet
	if at.n > 0 {
		s = o.reserve(at)
	}
	return o, s, true, nil
}

// drop forgets an idle object, so that the store may evict its content.
func (c *Cache) drop(o *Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o.refs--
	if o.refs > 0 || c.objects[o.id] != o || o.busy() {
		return
	}
	delete(c.objects, o.id)
	o.t.Release()
	if o.discard.Load() {
		// Whoever asks next starts from what the origin says then, its length
		// included.
		if err := c.o.Store.Remove(o.id); err != nil && !errors.Is(err, piecestore.ErrNotFound) {
			c.o.Log.Warn("a refused task stays in the cache", "task", o.id.Short(), "error", err)
		}
	}
}
