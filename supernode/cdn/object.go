package cdn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Meta is what the origin said about content besides its length.
type Meta struct{ ContentType, ETag, LastModified string }

func metaOf(i origin.Info) Meta {
	return Meta{ContentType: i.ContentType, ETag: i.ETag, LastModified: i.LastModified}
}

// Object is one task in the cache. Its methods are safe for concurrent use.
type Object struct {
	c     *Cache
	id    task.ID
	t     *piecestore.Task
	table task.Table
	url   string // of the request it was made for; "" if it was in the store

	refs    int         // guarded by c.mu
	discard atomic.Bool // what the store has of it is of no use to later requests

	mu        sync.Mutex // taken after c.mu where both are
	meta      Meta
	sources   []Request // what requesters gave to ask the origin with, latest first
	arrivals  int       // sources that have come so far
	ranges    bool      // the origin serves ranges
	reading   bool      // a worker reads the whole, since the origin serves none
	published task.Set
	grown     chan struct{} // closed when published has grown, and at the end
	wanted    task.Set
	asked     task.Set // of wanted, those somebody waits for
	fetching  task.Set
	workers   int
	verifying bool
	checkCtx  context.Context //nolint:containedctx // ends the check when the fetch has failed
	stopCheck context.CancelFunc
	verified  bool   // the whole content is held and its digest matches
	node      string // the first that asked
	whole     bool   // somebody has wanted all of it
	gaveUp    error  // why that was given up last
}

func newObject(c *Cache, id task.ID, t *piecestore.Task) *Object {
	n := t.Table().Count()
	o := &Object{
		c: c, id: id, t: t, table: t.Table(), ranges: true, verified: t.Complete(), grown: make(chan struct{}),
		published: task.NewSet(n), wanted: task.NewSet(n), asked: task.NewSet(n), fetching: task.NewSet(n),
	}
	o.whole = true // until somebody has said what is wanted, the end is held back
	o.publishLocked()
	o.whole = false
	return o
}

// ID names the object's task.
func (o *Object) ID() task.ID { return o.id }

// Table divides the object into pieces.
func (o *Object) Table() task.Table { return o.table }

// Meta returns what the origin said about the content.
func (o *Object) Meta() Meta {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.meta
}

// Digest returns the SHA-256 of a published piece.
func (o *Object) Digest(i int) (task.Digest, bool) { return o.t.Digest(i) }

// Published returns the pieces that may be served, and whether they are all of
// the content, checked as a whole.
func (o *Object) Published() (pieces task.Set, complete bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.published.Clone(), o.verified
}

// Release gives the object back; the store may evict what nobody uses.
func (o *Object) Release() { o.c.drop(o) }

// busy reports whether the object is being fetched or checked.
func (o *Object) busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.workers > 0 || o.verifying
}

// describe fills in what the origin said, which the store does not keep.
func (o *Object) describe(m Meta) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.meta == (Meta{}) {
		o.meta = m
	}
}

// want adds what r asks for and starts fetching it.
func (o *Object) want(r Request) {
	o.mu.Lock()
	if o.t.HeldCount() < o.table.Count() {
		o.addSourceLocked(r)
	}
	if o.node == "" {
		o.node = r.Node
	}
	// Content with a table of its own is read by parts on every node, for as long
	// as nobody says otherwise: fetching the rest would hold up what is read.
	second := r.Node != "" && r.Node != o.node && o.table.Ends == nil
	for _, rg := range r.Ranges {
		first, end := o.table.Span(rg.Offset, rg.Length)
		o.wanted.AddRange(first, end)
		if !r.Ahead {
			o.asked.AddRange(first, end)
		}
	}
	if o.whole = o.whole || r.Whole || second; o.whole {
		o.wanted.AddRange(0, o.table.Count())
	}
	o.publishLocked() // with or without the last piece
	o.mu.Unlock()
	o.fetch()
	o.verify()
}

// Resume takes up again what r has asked for, if the origin has failed since.
// Who is told of failures only from now on calls it once.
func (o *Object) Resume(r Request) {
	o.mu.Lock()
	lost := r.Whole && !o.whole
	held := o.t.Held()
	for _, rg := range r.Ranges {
		first, end := o.table.Span(rg.Offset, rg.Length)
		for i := first; i < end && !lost; i++ {
			lost = !held.Has(i) && !o.wanted.Has(i)
		}
	}
	o.mu.Unlock()
	if lost {
		o.want(r)
	}
}

// maxSources bounds the sources kept for one object.
const maxSources = 8

// addSourceLocked puts r first: the latest token lives longest.
func (o *Object) addSourceLocked(r Request) {
	o.arrivals++
	kept := []Request{{URL: r.URL, Header: r.Header, Credential: r.Credential, Authorized: r.Authorized}}
	for _, s := range o.sources {
		same := s.URL == r.URL && s.Credential == r.Credential && s.Authorized == r.Authorized
		if !same && len(kept) < maxSources {
			kept = append(kept, s)
		}
	}
	o.sources = kept
}

// places returns what to ask for at the origin: each URL that requesters gave,
// with the credentials given for it. A credential goes to no other.
func (o *Object) places() (list []origin.Object, arrivals int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := map[string]int{}
	for _, s := range o.sources {
		i, ok := at[s.URL]
		if !ok {
			i = len(list)
			at[s.URL] = i
			list = append(list, s.object(nil))
		}
		list[i].Credentials = append(list[i].Credentials, s.credentials()...)
	}
	return list, o.arrivals
}

// publishLocked recomputes what may be served and reports whether it grew.
func (o *Object) publishLocked() bool {
	held := o.t.Held()
	_, checkable := o.id.Digest()
	if last := o.table.Count() - 1; checkable && o.whole && !o.verified && last >= 0 {
		held.Remove(last)
	}
	grew := false
	for w := range held {
		grew = grew || held[w]&^o.published[w] != 0
		o.published[w] = held[w]
	}
	if grew {
		o.wakeLocked()
	}
	return grew
}

// wakeLocked makes those look again that wait for something of o.
func (o *Object) wakeLocked() {
	close(o.grown)
	o.grown = make(chan struct{})
}

// publish announces new pieces.
func (o *Object) publish() {
	o.mu.Lock()
	grew := o.publishLocked()
	o.mu.Unlock()
	if grew {
		o.c.o.Events.Published(o.id)
	}
}

// verify checks the digest of the whole content once all of it is held. Content
// without a known digest is complete when it is all there.
func (o *Object) verify() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.verifying || o.verified || !o.whole {
		return
	}
	o.checkCtx, o.stopCheck = context.WithCancel(o.c.ctx)
	if o.verifying = o.c.spawn(o.verifyLoop); !o.verifying {
		o.stopCheck()
	}
}

// verifyLoop follows the fetch, so that the check ends with the last piece.
func (o *Object) verifyLoop() {
	err := o.check()
	o.mu.Lock()
	o.verifying = false
	o.stopCheck()
	o.mu.Unlock()
	switch {
	case err == nil:
		o.publish()
		o.c.o.Events.Published(o.id)
	case errors.Is(err, errStopped):
		o.verify() // somebody may have wanted the whole again since
	case errors.As(err, new(*DigestError)):
		o.revoke(err)
	default:
		o.mu.Lock()
		o.giveUpLocked(err)
		o.mu.Unlock()
		o.failed(err)
	}
	o.c.settle(o)
}

// errStopped ends a check whose fetch ended early.
var errStopped = errors.New("fetch stopped")

func (o *Object) check() error {
	if want, checkable := o.id.Digest(); checkable {
		got, err := o.t.Follow(o.checkCtx)
		if o.checkCtx.Err() != nil {
			return errStopped
		}
		if err != nil {
			return fmt.Errorf("reading back %s: %w", o.id.Short(), err)
		}
		if got != want {
			return &DigestError{ID: o.id, Got: got}
		}
	} else {
		for i := range o.table.Count() {
			if err := o.t.Wait(o.checkCtx, i); err != nil {
				return errStopped
			}
		}
	}
	if err := o.t.MarkComplete(); err != nil {
		return fmt.Errorf("recording that %s is complete: %w", o.id.Short(), err)
	}
	o.mu.Lock()
	o.verified = true
	o.wakeLocked()
	if len(o.sources) > 0 {
		// Where it came from is kept, in case some of it is damaged; credentials
		// are not.
		o.sources = []Request{{URL: o.sources[0].URL, Header: o.sources[0].Header, Authorized: true}}
	}
	o.mu.Unlock()
	return nil
}

// DigestError says that the origin's content is not what its name says.
type DigestError struct {
	ID  task.ID
	Got task.Digest
}

// Error names the object and what it hashes to.
func (e *DigestError) Error() string {
	return fmt.Sprintf("the origin's content for %s has SHA-256 %s: refused", e.ID, e.Got)
}

// revoke drops everything fetched of the object.
func (o *Object) revoke(reason error) {
	if err := o.t.Reset(); err != nil {
		reason = errors.Join(reason, fmt.Errorf("dropping its pieces: %w", err))
	}
	o.mu.Lock()
	clear(o.published)
	o.giveUpLocked(reason)
	o.mu.Unlock()
	o.discard.Store(true)
	o.c.o.Events.Revoked(o.id, reason)
}

// settle drops o from memory if nobody uses it any more.
func (c *Cache) settle(o *Object) {
	c.mu.Lock()
	o.refs++
	c.mu.Unlock()
	c.drop(o)
}

// WaitPublished returns nil once piece i may be served, or the reason why that
// will not be before ctx ends.
func (o *Object) WaitPublished(ctx context.Context, i int) error {
	for {
		o.mu.Lock()
		ok, grown := o.published.Has(i), o.grown
		o.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("waiting for piece %d of %s: %w", i, o.id.Short(), context.Cause(ctx))
		}
	}
}

// WaitComplete returns nil once all of the content is held and checked, or the
// error for which fetching it was given up. Somebody must have wanted the whole
// since it last was.
func (o *Object) WaitComplete(ctx context.Context) error {
	for {
		o.mu.Lock()
		done, wanted, why, grown := o.verified, o.whole, o.gaveUp, o.grown
		o.mu.Unlock()
		switch {
		case done:
			return nil
		case !wanted && why == nil:
			return fmt.Errorf("waiting for all of %s: nobody wants it", o.id.Short())
		case !wanted:
			return why
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("waiting for all of %s: %w", o.id.Short(), context.Cause(ctx))
		}
	}
}

// Open returns a reader of n bytes at off, which must be held. They are checked
// before. The reader may outlive the object.
func (o *Object) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	first, end := o.table.Span(off, n)
	f, err := o.t.OpenPieces(ctx, first, end)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", o.id.Short(), err)
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}
