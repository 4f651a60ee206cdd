package preheat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// Reports are at least minReport apart. With many rows to look at they are
// rarer, so that reporting on a large cluster does not keep a core busy.
const (
	minReport = 100 * time.Millisecond
	maxReport = 500 * time.Millisecond
	perRow    = 5 * time.Microsecond
	// lookAgain is how often a job looks whether a node has come back: nobody
	// tells.
	lookAgain = time.Second
	// settle is how long a node that says it is done may take to announce the
	// rest: announcements are batched.
	settle = 10 * time.Second
)

// run is one job being run. Its fields belong to the goroutine of Manager.run.
type run struct {
	m     *Manager
	j     *job
	ctx   context.Context //nolint:containedctx // the job's lifetime, which is that of a run
	blobs []*blob
	next  int // of blobs, the next to fetch
	slots int // free ones, of Options.Blobs

	marks   *marks
	results chan ensured
	fetches sync.WaitGroup
}

// ensured is what the cache answered.
type ensured struct {
	b   *blob
	obj Object
	err error
}

// marks collects which blobs have news. Its users hold all kinds of locks.
type marks struct {
	wake chan struct{} // room for one

	mu  sync.Mutex
	set map[int]struct{}
}

func (k *marks) add(i int) {
	k.mu.Lock()
	k.set[i] = struct{}{}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *marks) take() map[int]struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	set := k.set
	k.set = map[int]struct{}{}
	return set
}

// run takes a job from where it is to its end. When ctx ends, the job stays
// unfinished.
func (m *Manager) run(parent context.Context, j *job) {
	ctx, stop := j.begin(parent)
	defer stop()
	r := &run{
		m: m, j: j, ctx: ctx, slots: m.o.Blobs,
		marks: &marks{wake: make(chan struct{}, 1), set: map[int]struct{}{}},
	}
	m.o.Log.Info("a preheat job starts", "job", j.id, "type", j.snap.Type, "ref", j.snap.Ref, "url", j.snap.URL, "peers", len(j.targets))
	err := r.prepare()
	if err == nil {
		err = r.loop()
	}
	held := err == nil
	if held {
		r.accelerate()
	}
	r.end()
	switch cause := context.Cause(ctx); {
	case ctx.Err() != nil && errors.Is(cause, errCancelled):
		m.finish(j, r.finished(Cancelled, errCancelled.Error()))
	case ctx.Err() != nil && errors.Is(cause, errTimedOut) && !held:
		m.finish(j, r.finished(TimedOut, fmt.Sprintf("not finished within %s", time.Duration(j.snap.Timeout))))
	case ctx.Err() != nil && !errors.Is(cause, errTimedOut):
		return // the supernode stops
	case err != nil:
		m.finish(j, r.finished(Failed, j.message(err)))
	default:
		m.finish(j, r.finished(r.verdict()))
	}
}

// prepare finds out what the job consists of, unless that was done before a
// restart.
func (r *run) prepare() error {
	snap := r.j.snapshot()
	if snap.State = Running; snap.StartedAt == nil {
		now := r.m.o.Now().UTC()
		snap.StartedAt = &now
	}
	r.j.publish(snap)
	s := r.j.subject
	var contents []content
	switch {
	case s.image == nil:
		contents = []content{{id: s.id}}
	case len(snap.Blobs) > 0:
		for _, b := range snap.Blobs {
			contents = append(contents, content{id: b.TaskID, size: b.Size})
		}
	default:
		found, err := resolve(r.ctx, r.m.o.Origin, s, r.j.cred)
		if err != nil {
			return err
		}
		snap.Digest, contents = found.digest, found.contents
		if snap.Accelerate {
			for _, digest := range found.images {
				snap.Acceleration = append(snap.Acceleration, Acceleration{Image: digest, State: Pending})
			}
		}
	}
	for i, c := range contents {
		r.blobs = append(r.blobs, newBlob(i, c, s, r.j))
	}
	r.results = make(chan ensured, len(contents))
	snap.Blobs = r.rows()
	snap.Totals = totals(snap.Blobs, len(r.j.targets))
	r.j.publish(snap)
	return r.m.store(r.j)
}

// loop runs until all blobs have come to an end.
func (r *run) loop() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		r.start()
		if r.done() {
			return nil
		}
		timer.Reset(r.wait())
		select {
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case res := <-r.results:
			r.take(res)
		case <-r.marks.wake:
		case <-timer.C:
		}
		r.refresh()
		if !r.done() {
			r.pause()
		}
	}
}

// pause spaces reports.
func (r *run) pause() {
	rows := time.Duration(len(r.blobs)) * time.Duration(len(r.j.targets))
	t := time.NewTimer(min(minReport+rows*perRow, maxReport))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
	}
}

// start begins fetching as many blobs as may be at a time.
func (r *run) start() {
	for r.slots > 0 && r.next < len(r.blobs) {
		b := r.blobs[r.next]
		r.next++
		r.slots--
		b.row.State = Running
		b.slot = true
		if b.id != "" {
			r.follow(b)
		}
		r.fetch(b)
	}
}

// follow has the cache's news of b marked.
func (r *run) follow(b *blob) { b.sub = r.m.o.Hub.subscribe(b.id, func() { r.marks.add(b.i) }) }

// fetch asks the cache for b.
func (r *run) fetch(b *blob) {
	if r.ctx.Err() != nil {
		return // this is the last look before the end
	}
	b.tries++
	b.asking, b.retryAt = true, time.Time{}
	// Without a credential of its own the job uses the supernode's: whoever may
	// submit jobs may do so.
	request := cdn.Request{
		ID: b.id, URL: b.url, Credential: r.j.cred, Whole: true, Authorized: r.j.cred == origin.Credential{},
	}
	r.fetches.Go(func() {
		obj, err := r.m.o.Cache.Ensure(r.ctx, request)
		r.results <- ensured{b, obj, err} // room for one of every blob
	})
}

// take handles the cache's answer.
func (r *run) take(res ensured) {
	b := res.b
	b.asking = false
	r.marks.add(b.i)
	if res.err != nil {
		if !b.row.State.Final() {
			r.failed(b, res.err, origin.IsPermanent(res.err))
		}
		return
	}
	if b.obj != nil {
		b.obj.Release()
	}
	b.obj = res.obj
	b.row.TaskID, b.row.Size = b.obj.ID(), b.obj.Table().Length
	if b.id == "" {
		// Now that the task is known its failures are heard of; one that came
		// before is noticed by asking once more, which is otherwise idle.
		b.id = b.obj.ID()
		r.follow(b)
		b.tries--
		r.fetch(b)
	}
	if b.peers == nil {
		r.order(b, b.newPeers(r.j.targets))
	}
}

// maxTries is how often the cache is asked for one blob.
const maxTries = 3

// failed decides what follows a failure of b at the supernode.
func (r *run) failed(b *blob, reason error, final bool) {
	if r.ctx.Err() != nil {
		return
	}
	if !final && b.tries < maxTries {
		b.row.Error = r.j.message(reason)
		b.retryAt = time.Now().Add(r.m.o.Retry)
		return
	}
	b.settle(Failed, r.j.message(reason))
	r.freeSlot(b)
	// What the supernode cannot get it cannot give: those that have it all
	// already are done, the others will not be.
	r.lookAtPeers(b, true)
	for _, p := range b.open() {
		p.end(Failed, "the supernode could not fetch the content")
	}
	r.forget(b)
}

func (r *run) freeSlot(b *blob) {
	if b.slot {
		b.slot = false
		r.slots++
	}
}

// refresh looks at the blobs that have news or whose time has come, and
// publishes what it finds.
func (r *run) refresh() {
	now := time.Now()
	news := r.marks.take()
	changed := false
	for _, b := range r.blobs {
		_, marked := news[b.i]
		if !marked && !b.due(now) {
			continue
		}
		changed = true
		r.look(b, now)
	}
	if changed {
		snap := r.j.snapshot()
		snap.Blobs = r.rows()
		snap.Totals = totals(snap.Blobs, len(r.j.targets))
		r.j.publish(snap)
	}
}

// look brings b's row up to date.
func (r *run) look(b *blob, now time.Time) {
	b.stale = true
	if !b.retryAt.IsZero() && !now.Before(b.retryAt) {
		r.fetch(b)
	}
	if b.obj != nil && !b.row.State.Final() {
		r.lookAtCache(b)
	}
	if len(b.open()) > 0 {
		r.lookAtPeers(b, false)
	}
	if b.row.State.Final() && len(b.open()) == 0 {
		r.forget(b)
	}
}

func (r *run) lookAtCache(b *blob) {
	set, complete := b.obj.Published()
	if complete {
		b.row.HeldBytes = b.row.Size
		b.settle(Succeeded, "")
		r.freeSlot(b)
		return
	}
	table := b.obj.Table()
	b.row.HeldBytes = 0
	for i := range set.All() {
		_, n := table.Piece(i)
		b.row.HeldBytes += n
	}
	revoked, failure := b.sub.takeFailure()
	if failure == nil || b.asking || !b.retryAt.IsZero() {
		return // what a failure before the latest request says is out of date
	}
	permanent := origin.IsPermanent(failure)
	if permanent && !revoked && b.tries == 1 {
		// It may be the end of somebody else's fetch: asking again tells.
		r.fetch(b)
		return
	}
	r.failed(b, failure, permanent || revoked)
}

// done reports that every blob has come to an end everywhere.
func (r *run) done() bool {
	return !slices.ContainsFunc(r.blobs, func(b *blob) bool { return !b.row.State.Final() || b.asking || len(b.open()) > 0 })
}

// wait returns how long nothing happens by itself.
func (r *run) wait() time.Duration {
	d := time.Hour
	now := time.Now()
	for _, b := range r.blobs {
		for _, at := range []time.Time{b.retryAt, b.lookAt} {
			if !at.IsZero() {
				d = min(d, max(at.Sub(now), 0))
			}
		}
	}
	return d
}

// rows returns the blobs as they are shown. Lists of peers are shared with
// earlier rows and never changed.
func (r *run) rows() []Blob {
	rows := make([]Blob, len(r.blobs))
	for i, b := range r.blobs {
		rows[i] = b.shown()
	}
	return rows
}

// end stops what the job has going and waits for it.
func (r *run) end() {
	r.fetches.Wait()
	for len(r.results) > 0 {
		if res := <-r.results; res.obj != nil {
			res.obj.Release()
		}
	}
	if r.ctx.Err() != nil {
		for _, b := range r.blobs {
			r.marks.add(b.i)
		}
		r.refresh() // so that the report is right
	}
	for _, b := range r.blobs {
		r.forget(b)
		if b.sub != nil {
			r.m.o.Hub.unsubscribe(b.id, b.sub)
		}
		if b.obj != nil {
			b.obj.Release()
			b.obj = nil
		}
	}
}

// finished returns the job in its final state; what is not finished shares it.
func (r *run) finished(s State, reason string) Job {
	if s == Cancelled || s == TimedOut {
		for _, b := range r.blobs {
			b.settle(s, "")
			for _, p := range b.open() {
				p.end(s, "")
			}
			b.stale = true
		}
	}
	out := r.j.ended(s, reason, r.m.o.Now())
	out.Acceleration = endedRows(out.Acceleration, s)
	if len(r.blobs) > 0 {
		out.Blobs = r.rows()
		out.Totals = totals(out.Blobs, len(r.j.targets))
	}
	return out
}

// verdict judges a job whose blobs have all come to an end.
func (r *run) verdict() (State, string) {
	var reason string
	failed := 0
	for _, b := range r.blobs {
		if b.row.State == Failed {
			if failed++; reason == "" {
				reason = fmt.Sprintf("the supernode could not fetch %s: %s", b.name(), b.row.Error)
			}
		}
	}
	if failed > 0 {
		return Failed, fmt.Sprintf("%d of %d blobs: %s", failed, len(r.blobs), reason)
	}
	bad := map[string]bool{}
	for _, b := range r.blobs {
		for _, p := range b.peers {
			if p.row.State == Failed {
				if bad[p.row.Name] = true; reason == "" {
					reason = fmt.Sprintf("%s: %s", p.row.Name, p.row.Error)
				}
			}
		}
	}
	switch {
	case len(bad) == 0:
		return Succeeded, ""
	case len(bad) == len(r.j.targets):
		return Failed, fmt.Sprintf("no node holds everything (the supernode does): %s", reason)
	}
	return Partial, fmt.Sprintf("%d of %d nodes failed: %s", len(bad), len(r.j.targets), reason)
}

// name returns what to call b in messages.
func (b *blob) name() string {
	if b.id == "" {
		return "the file"
	}
	return task.ID.Short(b.id)
}
