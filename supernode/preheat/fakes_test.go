package preheat

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/state"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// fakeCache is a cache in memory. Its content comes from an origin, if it has
// one, and else appears when a test says so.
type fakeCache struct {
	events cdn.Events
	origin *origin.Client

	mu       sync.Mutex
	objects  map[task.ID]*fakeObject
	sizes    map[task.ID]int64
	refuse   map[task.ID][]error // answers of Ensure, first come first served
	requests []cdn.Request
	asking   int // calls of Ensure for content of unknown size, which block
}

func newFakeCache(events cdn.Events) *fakeCache {
	return &fakeCache{events: events, objects: map[task.ID]*fakeObject{}, sizes: map[task.ID]int64{}, refuse: map[task.ID][]error{}}
}

type fakeObject struct {
	c         *fakeCache
	id        task.ID
	table     task.Table
	published task.Set // guarded by c.mu, as all that follow
	complete  bool
	refs      int
}

func (o *fakeObject) ID() task.ID       { return o.id }
func (o *fakeObject) Table() task.Table { return o.table }
func (o *fakeObject) Published() (task.Set, bool) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	return o.published.Clone(), o.complete
}

func (o *fakeObject) Release() {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	o.refs--
}

func (c *fakeCache) Ensure(ctx context.Context, r cdn.Request) (Object, error) {
	c.mu.Lock()
	c.requests = append(c.requests, r)
	if errs := c.refuse[r.ID]; len(errs) > 0 {
		c.refuse[r.ID] = errs[1:]
		c.mu.Unlock()
		return nil, errs[0]
	}
	size, known := c.sizes[r.ID]
	c.mu.Unlock()
	if c.origin != nil {
		return c.read(ctx, r)
	}
	if !known {
		c.mu.Lock()
		c.asking++
		c.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return c.object(r.ID, size), nil
}

func (c *fakeCache) object(id task.ID, size int64) *fakeObject {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.objects[id]
	if !ok {
		table := task.Uniform(size)
		o = &fakeObject{c: c, id: id, table: table, published: task.NewSet(table.Count())}
		c.objects[id] = o
	}
	o.refs++
	return o
}

// read is Ensure with an origin: it fetches everything before it returns.
func (c *fakeCache) read(ctx context.Context, r cdn.Request) (Object, error) {
	obj := origin.Object{URL: r.URL, Header: r.Header}
	if r.Credential != (origin.Credential{}) {
		obj.Credentials = []origin.Credential{r.Credential}
	}
	body, err := c.origin.Open(ctx, obj, 0, -1)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	id := r.ID
	if want, ok := id.Digest(); ok && want != sha256.Sum256(data) {
		return nil, &cdn.DigestError{ID: id, Got: sha256.Sum256(data)}
	} else if !ok {
		id = task.URLID(r.URL, body.ETag, body.LastModified, int64(len(data)))
	}
	o := c.object(id, int64(len(data)))
	c.finish(id)
	return o, nil
}

// advance publishes the first n pieces.
func (c *fakeCache) advance(id task.ID, n int) {
	c.mu.Lock()
	c.objects[id].published.AddRange(0, n)
	c.mu.Unlock()
	c.events.Published(id)
}

func (c *fakeCache) finish(id task.ID) {
	c.mu.Lock()
	o := c.objects[id]
	o.published.AddRange(0, o.table.Count())
	o.complete = true
	c.mu.Unlock()
	c.events.Published(id)
}

func (c *fakeCache) refs() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.objects {
		n += o.refs
	}
	return n
}

func (c *fakeCache) asked(id task.ID) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		if r.ID == id {
			n++
		}
	}
	return n
}

// fakeTracker keeps commands and what nodes hold.
type fakeTracker struct {
	mu     sync.Mutex
	peers  map[string]string // name → zone
	orders []*fakeOrder
	held   map[task.ID]map[string]int64
	// obey, if set, is called for every node that is told something.
	obey func(peer string, o *fakeOrder)
}

type fakeOrder struct {
	id        uint64
	src       wire.Source
	priority  apiv1.Priority
	peers     map[string]tracker.Outcome
	update    func()
	forgotten bool
}

func newFakeTracker(peers ...string) *fakeTracker {
	t := &fakeTracker{peers: map[string]string{}, held: map[task.ID]map[string]int64{}}
	for _, p := range peers {
		t.peers[p] = ""
	}
	return t
}

func (t *fakeTracker) Order(peers []string, src wire.Source, priority apiv1.Priority, update func()) uint64 {
	t.mu.Lock()
	o := &fakeOrder{id: uint64(len(t.orders) + 1), src: src, priority: priority, peers: map[string]tracker.Outcome{}, update: update}
	t.orders = append(t.orders, o)
	var told []string
	for _, p := range peers {
		o.peers[p] = tracker.Outcome{}
		if _, ok := t.peers[p]; ok {
			told = append(told, p)
		} else {
			o.peers[p] = tracker.Outcome{Error: "the node is not connected"}
		}
	}
	obey := t.obey
	t.mu.Unlock()
	update()
	if obey != nil {
		for _, p := range told {
			obey(p, o)
		}
	}
	return o.id
}

func (t *fakeTracker) Outcomes(id uint64) map[string]tracker.Outcome {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.orders[id-1]
	if o.forgotten {
		return nil
	}
	return maps.Clone(o.peers)
}

func (t *fakeTracker) Forget(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.orders[id-1].forgotten = true
}

func (t *fakeTracker) HeldBytes(id task.ID, peer string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[id][peer]
}

func (t *fakeTracker) Peers() []tracker.PeerInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	var infos []tracker.PeerInfo
	for _, name := range slices.Sorted(maps.Keys(t.peers)) {
		infos = append(infos, tracker.PeerInfo{Name: name, Zone: t.peers[name], Address: "10.0.0.1:65002"})
	}
	return infos
}

// hold notes that peer announces n bytes of id.
func (t *fakeTracker) hold(id task.ID, peer string, n int64) {
	t.mu.Lock()
	if t.held[id] == nil {
		t.held[id] = map[string]int64{}
	}
	t.held[id][peer] = n
	t.mu.Unlock()
	t.tell(id)
}

// report sets the outcome of the latest order of id at peer.
func (t *fakeTracker) report(id task.ID, peer string, out tracker.Outcome) {
	t.mu.Lock()
	for _, o := range slices.Backward(t.orders) {
		if _, ok := o.peers[peer]; ok && o.src.ID == id {
			o.peers[peer] = out
			break
		}
	}
	t.mu.Unlock()
	t.tell(id)
}

func (t *fakeTracker) tell(id task.ID) {
	t.mu.Lock()
	var updates []func()
	for _, o := range t.orders {
		if o.src.ID == id && !o.forgotten {
			updates = append(updates, o.update)
		}
	}
	t.mu.Unlock()
	for _, u := range updates {
		u()
	}
}

// connect sets whether peer is there. A node that leaves fails its commands.
func (t *fakeTracker) connect(peer string, there bool) {
	t.mu.Lock()
	var updates []func()
	if there {
		t.peers[peer] = ""
	} else {
		delete(t.peers, peer)
		for _, o := range t.orders {
			if out, ok := o.peers[peer]; ok && !out.Done && out.Error == "" {
				o.peers[peer] = tracker.Outcome{Error: "the node has left the cluster"}
				updates = append(updates, o.update)
			}
		}
	}
	t.mu.Unlock()
	for _, u := range updates {
		u()
	}
}

func (t *fakeTracker) unforgotten() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.orders {
		if !o.forgotten {
			n++
		}
	}
	return n
}

// obedient makes nodes fetch everything at once.
func (t *fakeTracker) obedient(size func(task.ID) int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.obey = func(peer string, o *fakeOrder) {
		t.hold(o.src.ID, peer, size(o.src.ID))
		t.report(o.src.ID, peer, tracker.Outcome{Done: true})
	}
}

// bench is a manager with fakes around it.
type bench struct {
	*Manager
	t       *testing.T
	cache   *fakeCache
	tracker *fakeTracker
	state   state.Store
	stop    func()
}

func newBench(t *testing.T, change func(*Options), peers ...string) *bench {
	t.Helper()
	b := &bench{t: t, tracker: newFakeTracker(peers...), state: state.NewMemory(), stop: func() {}}
	b.open(change)
	return b
}

// open makes a manager on the state, as a restart of the supernode does.
func (b *bench) open(change func(*Options)) {
	b.t.Helper()
	hub := NewHub(nil)
	b.cache = newFakeCache(hub)
	o := Options{State: b.state, Cache: b.cache, Hub: hub, Tracker: b.tracker, Retry: time.Second}
	if change != nil {
		change(&o)
	}
	m, err := New(o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Manager = m
}

// start runs the manager until the test ends or stop is called.
func (b *bench) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	})
	b.t.Cleanup(b.stop)
}

func (b *bench) submit(r Request) Job {
	b.t.Helper()
	j, err := b.Submit(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

func (b *bench) get(id int64) Job {
	b.t.Helper()
	j, err := b.Get(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

// last waits for the end of a job.
func (b *bench) last(id int64) Job {
	b.t.Helper()
	c, err := b.Watch(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	var j Job
	for j = range c {
	}
	if !j.State.Final() {
		b.t.Fatalf("the watch of job %d ended in state %s", id, j.State)
	}
	return j
}
