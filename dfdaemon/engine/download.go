package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/scheduler"
)

// Meta is what the origin said about content besides its length.
type Meta struct{ ContentType, ETag, LastModified string }

func metaOf(i *apiv1.TaskInfo) Meta {
	return Meta{ContentType: i.ContentType, ETag: i.Etag, LastModified: i.LastModified}
}

// download is one task being fetched.
type download struct {
	e     *Engine
	id    task.ID
	ready chan struct{} // closed when t is set or the download has failed
	// settled gets the answer to the request that started the download: nil
	// when the origin let it in. 1-buffered.
	settled chan error
	first   Request
	before  *download     // the one before it, nil if that is long over
	done    chan struct{} // closed when run has returned

	box mailbox

	mu      sync.Mutex
	r       Request // the latest, for its credential
	users   int
	over    bool // takes no more users
	t       *piecestore.Task
	err     error
	meta    Meta
	whole   bool
	vouched bool    // the supernode has checked the digest of the whole
	ranges  []Range // wanted before the table was known
	wanted  task.Set
	readers map[*reader]struct{}
	grown   chan struct{} // closed when more can be read

	// The rest belongs to run's goroutine.
	ctx       context.Context //nolint:containedctx // run's, for what its functions start
	wg        sync.WaitGroup
	requests  map[uint64]asking // interests that are not answered
	known     task.Set
	digests   []task.Digest
	news      bool // something may have to be done
	parents   map[string]*parent
	share     scheduler.Share
	fetches   map[*fetch]struct{}
	busy      task.Set         // pieces with a fetch under way; at times fewer
	following *piecestore.Task // whose digest as a whole is being computed
	alone     bool             // reading from the origin
	idleSince time.Time        // when the last user left; zero while there is one
	gained    time.Time        // when the last piece came, or the first was wanted
	asked     time.Time        // when Starved was sent last
	compared  time.Time        // when parents' speeds were compared last
}

// mailbox carries functions to run's goroutine.
type mailbox struct {
	mu     sync.Mutex
	queue  []func()
	signal chan struct{} // 1-buffered
}

// post lets f run on the download's goroutine, which then looks for what to do.
// It does not block; after the end of the download f is dropped.
func (d *download) post(f func()) { d.postQuietly(func() { f(); d.news = true }) }

// postQuietly is post for functions that say themselves, by d.news, whether there
// is something to do: most of what a swarm says is of no consequence.
func (d *download) postQuietly(f func()) {
	d.box.mu.Lock()
	d.box.queue = append(d.box.queue, f)
	d.box.mu.Unlock()
	select {
	case d.box.signal <- struct{}{}:
	default:
	}
}

// deliver runs what was posted.
func (d *download) deliver() {
	d.box.mu.Lock()
	queue := d.box.queue
	d.box.queue = nil
	d.box.mu.Unlock()
	for _, f := range queue {
		f()
	}
}

func newDownload(e *Engine, r Request, before *download) *download {
	d := &download{
		e: e, id: r.ID, r: r, first: r, before: before, users: 1, ready: make(chan struct{}), done: make(chan struct{}), settled: make(chan error, 1),
		readers: map[*reader]struct{}{}, grown: make(chan struct{}),
		requests: map[uint64]asking{}, parents: map[string]*parent{}, fetches: map[*fetch]struct{}{},
		whole: r.Whole, ranges: r.Ranges,
	}
	d.box.signal = make(chan struct{}, 1)
	d.post(func() { d.express(asking{r: r, first: true}) })
	return d
}

// asking is an interest that the supernode has not answered.
type asking struct {
	r     Request
	first bool // it started the download
	anew  bool // the supernode may know nothing
}

// settle tells whoever started the download how its request was answered.
func (d *download) settle(err error) {
	select {
	case d.settled <- err:
	default: // answered before
	}
}

// enter adds a user with a request of its own; false if it is too late.
func (d *download) enter(r Request) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return false
	}
	d.users++
	d.wantLocked(r)
	d.post(func() { d.express(asking{r: r}) })
	return true
}

// wantLocked adds to what is wanted.
func (d *download) wantLocked(r Request) {
	d.r = r
	d.whole = d.whole || r.Whole
	d.ranges = append(d.ranges, r.Ranges...)
	if d.t == nil {
		return
	}
	table := d.t.Table()
	if d.whole {
		d.wanted.AddRange(0, table.Count())
	}
	for _, rg := range d.ranges {
		d.wanted.AddRange(table.Span(rg.Offset, rg.Length))
	}
	d.ranges = nil
}

// leave takes a user away.
func (d *download) leave() {
	d.mu.Lock()
	d.users--
	d.mu.Unlock()
	d.post(func() {})
}

// task returns a new reference to the store's task, once ready is closed.
func (d *download) task() (*piecestore.Task, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	t, ok := d.e.o.Store.Get(d.id)
	if !ok {
		return nil, fmt.Errorf("opening %s: %w", d.id.Short(), piecestore.ErrNotFound)
	}
	return t, nil
}

// run owns the download until it is over.
func (d *download) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	d.ctx = ctx
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	d.succeed(ctx)
	d.restore()
	for {
		d.deliver()
		if d.ended(ctx) {
			break
		}
		if d.news {
			d.news = false
			d.work(ctx)
		}
		select {
		case <-d.box.signal:
		case <-tick.C:
			d.news = true
		case <-ctx.Done():
		}
	}
	cancel()
	d.wg.Wait()
	d.finish()
}

// succeed waits for the end of the download before d: its last message takes
// back the node's interest in the task, so it must not come after d's first.
func (d *download) succeed(ctx context.Context) {
	if d.before == nil {
		return
	}
	select {
	case <-d.before.done:
	case <-ctx.Done():
	}
	d.before = nil // or each would keep all those before it in memory
}

// tickEvery is how often deadlines are looked at.
const tickEvery = 20 * time.Millisecond

// restore goes on from what the store has of the task.
func (d *download) restore() {
	if t, ok := d.e.o.Store.Get(d.id); ok {
		d.setTask(t)
	}
}

// setTask takes over a reference to the store's task.
func (d *download) setTask(t *piecestore.Task) {
	n := t.Table().Count()
	d.known, d.digests = task.NewSet(n), make([]task.Digest, n)
	d.busy = task.NewSet(n)
	d.gained = d.e.o.Now()
	d.mu.Lock()
	d.t, d.wanted = t, task.NewSet(n)
	d.wantLocked(d.r)
	d.mu.Unlock()
	// A task that the store knew is ready only when somebody has said that the
	// caller may have it.
}

// open lets callers of Open go on.
func (d *download) open() {
	select {
	case <-d.ready:
	default:
		close(d.ready)
	}
}

// setInfo takes over the supernode's answer.
func (d *download) setInfo(info *apiv1.TaskInfo) {
	a, ours := d.requests[info.Request]
	if a.first {
		defer d.settle(nil)
	}
	delete(d.requests, info.Request)
	d.mu.Lock()
	d.meta = metaOf(info)
	known := d.t
	r := d.r
	d.mu.Unlock()
	if info.Table == nil { // as it was told before
		if ours && known != nil {
			d.open()
		}
		return
	}
	table, err := wire.Table(info.Table)
	if err != nil {
		d.fail(fmt.Errorf("the supernode's answer for %s: %w", d.id.Short(), err))
		return
	}
	if known == nil || !known.Table().Equal(table) {
		if err := d.create(r, table); err != nil {
			d.fail(err)
			return
		}
	}
	d.open()
}

// create makes the store's task. One with another table is replaced: its pieces
// are of no use in this swarm.
func (d *download) create(r Request, table task.Table) error {
	d.mu.Lock()
	old := d.t
	d.mu.Unlock()
	if old != nil {
		d.following = nil
		d.stopFetches()
		old.Release()
	}
	source := origin.RedactURL(r.URL) // it goes to disk
	t, err := d.e.o.Store.Create(d.id, table, source)
	if errors.Is(err, piecestore.ErrTableMismatch) {
		if err = d.e.o.Store.Remove(d.id); err == nil {
			t, err = d.e.o.Store.Create(d.id, table, source)
		}
	}
	if err != nil {
		d.mu.Lock()
		d.t = nil
		d.mu.Unlock()
		return fmt.Errorf("storing %s: %w", d.id.Short(), err)
	}
	d.setTask(t)
	return nil
}

// express tells the supernode of a request.
func (d *download) express(a asking) {
	number := d.e.nextRequest()
	d.requests[number] = a
	r := a.r
	if !a.anew && isClosed(d.ready) {
		r.Table = nil // the supernode has one
	}
	d.e.o.Supernode.Send(interest(number, r)) // without a connection: when there is one
}

// reconnected tells a new stream what is wanted.
func (d *download) reconnected() {
	waiting := d.requests
	d.requests = map[uint64]asking{}
	for _, a := range waiting {
		a.anew = true
		d.express(a)
	}
	d.mu.Lock()
	if !isClosed(d.ready) {
		d.mu.Unlock()
		return
	}
	r := d.r
	r.Whole = d.whole
	r.Authorized = true // whoever is being served was let in
	if d.t != nil && !r.Whole {
		r.Ranges = spans(d.t.Table(), d.wanted)
	}
	d.mu.Unlock()
	d.express(asking{r: r, anew: true})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// spans are the byte ranges of a set of pieces.
func spans(table task.Table, set task.Set) []Range {
	var out []Range
	for i := range set.All() {
		off, n := table.Piece(i)
		if k := len(out) - 1; k >= 0 && out[k].Offset+out[k].Length == off {
			out[k].Length += n
		} else {
			out = append(out, Range{off, n})
		}
	}
	return out
}

// refused handles the supernode's refusal of one request, or, with number 0,
// its failure to read the origin.
func (d *download) refused(number uint64, f *Failure) {
	if a, ok := d.requests[number]; ok && a.first {
		d.settle(f)
	}
	delete(d.requests, number)
	d.mu.Lock()
	served := isClosed(d.ready) && d.t != nil
	d.mu.Unlock()
	if number != 0 && (served || len(d.requests) > 0) {
		return // others were let in, or may yet be
	}
	d.fail(f)
}

// fail ends the download with err.
func (d *download) fail(err error) {
	d.mu.Lock()
	if d.err == nil {
		d.err = err
		d.over = true
		d.wakeLocked()
	}
	d.mu.Unlock()
	d.settle(err)
	d.open()
}

// failure is why the download has failed, nil if it has not.
func (d *download) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// wakeLocked lets readers look again.
func (d *download) wakeLocked() {
	close(d.grown)
	d.grown = make(chan struct{})
}

// ended reports whether there is nothing more to do.
func (d *download) ended(ctx context.Context) bool {
	now := d.e.o.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil && d.err == nil {
		d.err = errStopping
		d.wakeLocked()
	}
	switch {
	case d.users > 0:
		d.idleSince = time.Time{}
	case d.idleSince.IsZero():
		d.idleSince = now
	}
	complete := d.t != nil && d.t.Complete()
	unused := d.users == 0 && (now.Sub(d.idleSince) >= d.e.o.Linger || !isClosed(d.ready) || d.satisfiedLocked())
	if d.err == nil && !complete && !unused {
		return false
	}
	d.over = true
	return true
}

// satisfiedLocked reports whether all that is wanted is there.
func (d *download) satisfiedLocked() bool {
	if d.t == nil || d.whole {
		return false
	}
	held := d.t.Held()
	for w := range d.wanted {
		if d.wanted[w]&^held[w] != 0 {
			return false
		}
	}
	return true
}

// finish gives back what the download had.
func (d *download) finish() {
	d.mu.Lock()
	t, err := d.t, d.err
	d.wakeLocked()
	d.mu.Unlock()
	if t != nil {
		if t.Complete() {
			d.e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Finished{Finished: &apiv1.Finished{
				TaskId: string(d.id), Complete: true,
			}}})
		}
		t.Release()
	}
	d.e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Leave{Leave: &apiv1.Leave{TaskId: string(d.id)}}})
	if err != nil {
		d.e.o.Log.Warn("a download failed", "task", d.id, "error", err)
	} else {
		// That the content came to be here says nothing about the right of
		// whoever has started the download and was not answered.
		err = ErrUnsettled
	}
	d.settle(err)
	d.open()
	close(d.done)
}
