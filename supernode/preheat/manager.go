package preheat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/state"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// MaxUnfinished bounds the jobs that wait or run.
const MaxUnfinished = 1000

// Tracker is what a Manager uses of the supernode's tracker.
type Tracker interface {
	Order(peers []string, src wire.Source, priority apiv1.Priority, update func()) uint64
	Outcomes(id uint64) map[string]tracker.Outcome
	Forget(id uint64)
	HeldBytes(id task.ID, peer string) int64
	Peers() []tracker.PeerInfo
}

// Object is content in the supernode's cache; *cdn.Object is one.
type Object interface {
	ID() task.ID
	Table() task.Table
	Published() (pieces task.Set, complete bool)
	Release()
}

// Cache is the supernode's cache, see FromCDN.
type Cache interface {
	// Ensure is that of cdn.Cache.
	Ensure(ctx context.Context, r cdn.Request) (Object, error)
}

// FromCDN returns c as a Cache.
func FromCDN(c *cdn.Cache) Cache { return cdnCache{c} }

type cdnCache struct{ c *cdn.Cache }

func (c cdnCache) Ensure(ctx context.Context, r cdn.Request) (Object, error) {
	o, err := c.c.Ensure(ctx, r)
	if err != nil {
		if o != nil {
			o.Release()
		}
		return nil, err
	}
	return o, nil
}

// Options configures a Manager. State, Cache, Hub, Tracker and Origin are
// required.
type Options struct {
	State   state.Store
	Cache   Cache
	Hub     *Hub // through which the Cache's events go
	Tracker Tracker
	Origin  Origin
	// Accelerator makes indexes; default: nobody does, and jobs that ask for them
	// are refused.
	Accelerator Accelerator
	// Upstream says where registries are; default: https://HOST, plain HTTP on
	// loopback addresses.
	Upstream Upstream
	Log      *slog.Logger
	// Now is the clock for the times that jobs show; default time.Now.
	Now func() time.Time

	// Jobs that run at a time; default 16.
	Jobs int
	// Blobs of one job that the cache fetches at a time; default 8.
	Blobs int
	// Reconnect is how long a node that has left may take to come back before
	// it counts as failed; default 30 s.
	Reconnect time.Duration
	// Retry is the wait before the cache is asked again for what failed, twice
	// at most; default 5 s.
	Retry time.Duration
	// Retain is how many finished jobs are kept, the latest; default 1,000.
	// Fewer are kept if they take more than 64 MiB.
	Retain int
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Jobs = cmp.Or(max(o.Jobs, 0), 16)
	o.Blobs = cmp.Or(max(o.Blobs, 0), 8)
	o.Reconnect = cmp.Or(max(o.Reconnect, 0), 30*time.Second)
	o.Retry = cmp.Or(max(o.Retry, 0), 5*time.Second)
	o.Retain = cmp.Or(max(o.Retain, 0), 1000)
}

// Manager keeps and runs jobs. Its methods are safe for concurrent use.
type Manager struct {
	o    Options
	wake chan struct{} // room for one: the queue or the running jobs changed

	mu       sync.Mutex
	live     map[int64]*job     // not finished
	queue    []*job             // of live, those that wait
	finished []finished         // by number
	byID     map[int64]struct{} // of finished
	bytes    int64              // stored for finished
	lastID   int64
	stopped  bool // Run has ended
}

// New returns a manager that knows the jobs in o.State. It starts nothing: jobs
// wait until Run is called.
func New(o Options) (*Manager, error) {
	o.setDefaults()
	m := &Manager{o: o, wake: make(chan struct{}, 1), live: map[int64]*job{}, byID: map[int64]struct{}{}}
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("reading the preheat jobs: %w", err)
	}
	return m, nil
}

// Submit checks a request and stores a job for it. Errors: *InvalidError,
// ErrNoPeers, ErrTooMany, ErrStopping, and those of the state store.
func (m *Manager) Submit(r Request) (Job, error) {
	s, cred, err := r.check(m.o.Upstream)
	if err != nil {
		return Job{}, err
	}
	if r.Accelerate && m.o.Accelerator == nil {
		return Job{}, invalid("accelerate", "this supernode accelerates no images")
	}
	targets, err := r.Scope.choose(m.o.Tracker.Peers(), r.Ref+r.URL)
	if err != nil {
		return Job{}, err
	}
	if r.Timeout == 0 {
		r.Timeout = Duration(DefaultTimeout)
	}
	j := &job{subject: s, cred: cred, targets: targets, watchers: map[chan Job]struct{}{}}
	j.redact(r.URL)
	j.snap = Job{
		Type: r.Type, Ref: r.Ref, URL: origin.RedactURL(r.URL), SHA256: r.SHA256, Platforms: r.Platforms,
		Scope: r.Scope, Timeout: r.Timeout, Accelerate: r.Accelerate, State: Pending, CreatedAt: m.o.Now().UTC(),
		Totals: Totals{PeersTotal: len(targets)},
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.stopped:
		return Job{}, ErrStopping
	case len(m.live) >= MaxUnfinished:
		return Job{}, fmt.Errorf("%w: %d, try again later", ErrTooMany, len(m.live))
	}
	j.snap.ID = m.lastID + 1
	j.id = j.snap.ID
	if err := m.store(j); err != nil {
		return Job{}, err
	}
	m.lastID = j.id
	m.live[j.id] = j
	m.queue = append(m.queue, j)
	m.nudge()
	return j.snapshot(), nil
}

// Get returns a job as it stands, or ErrNotFound.
func (m *Manager) Get(id int64) (Job, error) {
	m.mu.Lock()
	j := m.live[id]
	_, finished := m.byID[id]
	m.mu.Unlock()
	switch {
	case j != nil:
		return j.snapshot(), nil
	case !finished:
		return Job{}, fmt.Errorf("%w: %d", ErrNotFound, id)
	}
	r, err := m.fetch(id)
	if errors.Is(err, state.ErrNotFound) {
		err = fmt.Errorf("%w: %d", ErrNotFound, id) // dropped a moment ago
	}
	return r.Job, err
}

// List returns all jobs, the latest first, without their blobs.
func (m *Manager) List() []Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	jobs := make([]Job, 0, len(m.live)+len(m.finished))
	for _, f := range m.finished {
		jobs = append(jobs, f.summary)
	}
	for _, j := range m.live {
		s := j.snapshot()
		s.Blobs = nil
		jobs = append(jobs, s)
	}
	slices.SortFunc(jobs, func(a, b Job) int { return cmp.Compare(b.ID, a.ID) })
	return jobs
}

// Cancel ends a job that is not finished; it is finished with state Cancelled
// soon after, which Watch tells. A finished job is left as it is.
func (m *Manager) Cancel(id int64) (Job, error) {
	m.mu.Lock()
	if j := m.live[id]; j != nil {
		j.stop(errCancelled)
		m.nudge()
	}
	m.mu.Unlock()
	return m.Get(id)
}

// Watch returns a channel that gets the job as it stands, and then whenever it
// has changed; a slow reader gets fewer, newer values. The channel is closed
// after a job's final state, and without one when ctx or Run ends. ErrNotFound
// is returned for an unknown job.
func (m *Manager) Watch(ctx context.Context, id int64) (<-chan Job, error) {
	m.mu.Lock()
	j := m.live[id]
	stopped := m.stopped
	m.mu.Unlock()
	if j != nil && !stopped {
		if c, ok := j.watch(ctx); ok {
			return c, nil
		}
	}
	last, err := m.Get(id)
	if err != nil {
		return nil, err
	}
	c := make(chan Job, 1)
	c <- last
	close(c)
	return c, nil
}

// Run runs jobs until ctx ends, beginning with those that were unfinished when
// the supernode stopped. It returns after all work it started has ended; what
// is unfinished stays so. It is called once.
func (m *Manager) Run(ctx context.Context) error {
	var running sync.WaitGroup
	slots := make(chan struct{}, m.o.Jobs)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-m.wake:
			for j := m.next(slots); j != nil; j = m.next(slots) {
				running.Go(func() {
					defer m.nudge()
					defer func() { <-slots }()
					m.run(ctx, j)
				})
			}
		}
	}
	running.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	for _, j := range m.live {
		j.closeWatchers()
	}
	return nil
}

// next takes a waiting job and a slot for it, nil if either is missing. Jobs
// that were cancelled while they waited need none.
func (m *Manager) next(slots chan struct{}) *job {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = slices.DeleteFunc(m.queue, func(j *job) bool {
		cancelled := j.stopped() != nil
		if cancelled {
			m.finishLocked(j, j.ended(Cancelled, errCancelled.Error(), m.o.Now()))
		}
		return cancelled
	})
	if len(m.queue) == 0 {
		return nil
	}
	select {
	case slots <- struct{}{}:
	default:
		return nil
	}
	j := m.queue[0]
	m.queue = m.queue[1:]
	return j
}

// nudge makes Run look at the queue.
func (m *Manager) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}
