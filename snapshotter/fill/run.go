package fill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

var (
	errForgotten = errors.New("the device is not used any more")
	errUnwanted  = errors.New("given up: no reader waits for it")
	errNoOrigin  = errors.New("no repository is known to have the blob")
	errStalled   = errors.New("no bytes came")
	errEnough    = errors.New("nothing more is needed")
)

const (
	// maxCorrupt is how often a group may fail verification.
	maxCorrupt = 3
	firstRetry = 20 * time.Millisecond
	lastRetry  = time.Second
)

// class says for whom a run is.
type class int

const (
	demand     class = iota // a reader, with what lies ahead of it
	prefetch                // readers that are expected
	completion              // nobody in particular
)

func (c class) priority() node.Priority {
	return [...]node.Priority{node.Demand, node.Prefetch, node.Background}[c]
}

// run brings some groups of a device, in one read if all goes well.
type run struct {
	s       *state
	class   class
	flights []*flight // in the order of the blob
	cancel  context.CancelCauseFunc
	done    chan struct{}
	ahead   int64 // decoded bytes that count as ahead of readers

	// Guarded by the state's mu.
	at      int64 // offset in the blob up to which bytes have come
	current int   // group of which some have come, or -1
}

// placeLocked is where the run has come to, for who wants a group of it.
func (r *run) placeLocked(group int) place {
	return place{background: r.class != demand, at: r.at, begun: r.current == group}
}

// wantedLocked reports whether a reader waits for the run.
func (r *run) wantedLocked() bool {
	for _, fl := range r.flights {
		if fl.waiters > 0 && !fl.landed {
			return true
		}
	}
	return false
}

// launch starts runs for groups that have flights. mu is held.
func (s *state) launch(groups []int, c class) []*run {
	if len(groups) == 0 {
		return nil
	}
	var runs []*run
	for _, part := range coalesce(s.table.Blob.Groups, groups, maxRun) {
		r := &run{s: s, class: c, done: make(chan struct{}), current: -1, at: s.table.Blob.Groups[part[0]].Offset}
		for _, g := range part {
			fl := s.flights[g]
			fl.runs++
			fl.latest = r
			r.flights = append(r.flights, fl)
			if c == demand && fl.waiters == 0 {
				r.ahead += int64(s.table.Blob.Groups[g].Plain)
			}
		}
		ctx, cancel := context.WithCancelCause(s.f.ctx)
		r.cancel = cancel
		s.active[r] = struct{}{}
		if !s.f.spawn(func() { r.drive(ctx) }) {
			r.endLocked(ErrClosed)
		}
		runs = append(runs, r)
	}
	return runs
}

// drive brings the run's groups, or as many as can be had.
func (r *run) drive(ctx context.Context) {
	err := r.fetch(ctx)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.endLocked(err)
}

// endLocked gives up what has not come.
func (r *run) endLocked(err error) {
	for _, fl := range r.flights {
		if fl.runs--; fl.runs == 0 && !fl.landed {
			r.s.landLocked(fl, fmt.Errorf("%s: %w", describe(r.s.table, fl.group), cmp.Or(err, errUnwanted)))
		}
	}
	delete(r.s.active, r)
	r.s.f.returnAhead(r.ahead)
	r.cancel(nil)
	close(r.done)
}

// fetch tries until nothing is left to bring, and returns why something is. All
// origins are tried in turn; after a round in vain only for groups that readers
// wait for.
func (r *run) fetch(ctx context.Context) error {
	origins := r.s.origins()
	wait := firstRetry
	var last error
	for at, vain := 0, false; ; {
		todo := r.remaining(vain, last)
		if len(todo) == 0 {
			return last
		}
		if len(origins) == 0 {
			return cmp.Or(last, errNoOrigin)
		}
		if vain && !pause(ctx, wait) {
			return context.Cause(ctx)
		}
		if vain {
			wait = min(2*wait, lastRetry)
		}
		came, err := r.attempt(ctx, todo, origins[at])
		refused := false
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case local(err):
			return err
		case err == nil:
			r.s.prefer(origins[at])
			at++ // what is left was corrupt
		case node.Permanent(err):
			if origins = slices.Delete(origins, at, at+1); len(origins) == 0 && !errors.Is(err, node.ErrDamaged) {
				// A reader's patience is longer than the trouble may be: a supernode
				// that alone has the blob may come back, or a credential be renewed.
				origins, at, refused = r.s.origins(), 0, true
			}
		case !errors.Is(err, node.ErrUnreachable):
			at++
		}
		round := at >= len(origins)
		if round {
			at = 0
		}
		if err != nil {
			r.s.f.complain(slog.LevelWarn, "could not read from a blob", "blob", r.s.table.Blob.Digest, "readers", len(r.remaining(true, nil)), "error", err)
		}
		vain = refused || err != nil && !node.Permanent(err) && (round || errors.Is(err, node.ErrUnreachable))
		if last = err; came {
			wait = firstRetry
		}
	}
}

// origins returns where the blob can be had, beginning with where it was had
// last.
func (s *state) origins() []string {
	origins := slices.Clone(s.d.Origins())
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(origins, s.preferred); i > 0 {
		origins = slices.Insert(slices.Delete(origins, i, i+1), 0, s.preferred)
	}
	return origins
}

// prefer makes an origin the first to be asked.
func (s *state) prefer(origin string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.preferred = origin
}

// local reports whether an error is this node's own, which asking again does not
// change.
func local(err error) bool {
	return errors.As(err, new(*writeError))
}

// writeError is why a group could not be written to its device.
type writeError struct{ err error }

// Error returns what could not be done.
func (e *writeError) Error() string {
	if errors.Is(e.err, device.ErrFull) {
		return fmt.Sprintf("no room for it on this node: %v", e.err)
	}
	return fmt.Sprintf("write it to its device: %v", e.err)
}

// Unwrap returns the device's error.
func (e *writeError) Unwrap() error { return e.err }

// pause waits for about d, false if ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	d = d*3/4 + rand.N(d/2) // #nosec G404 -- to spread load
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// remaining returns the flights that the run still has to bring, only those that
// readers wait for if wanted is set.
func (r *run) remaining(wanted bool, trouble error) []*flight {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	var todo []*flight
	for _, fl := range r.flights {
		if fl.landed || fl.claimed {
			continue
		}
		if trouble != nil {
			fl.trouble = trouble
		}
		if !wanted || fl.waiters > 0 {
			todo = append(todo, fl)
		}
	}
	return todo
}

// attempt reads what is to be brought, and returns when all that came has been
// dealt with. came tells whether anything did.
func (r *run) attempt(ctx context.Context, todo []*flight, origin string) (came bool, err error) {
	s := r.s
	s.discard(ctx, todo, origin)
	groups := make([]int, len(todo))
	byGroup := make(map[int]*flight, len(todo))
	for i, fl := range todo {
		groups[i] = fl.group
		byGroup[fl.group] = fl
	}
	for _, part := range coalesce(s.table.Blob.Groups, groups, maxRun) {
		ctx, cancel := context.WithCancelCause(ctx)
		v := &receiver{r: r, ctx: ctx, cancel: cancel, next: make([]*flight, len(part))}
		for i, g := range part {
			v.next[i] = byGroup[g]
		}
		err = v.receive(origin)
		cancel(nil)
		came = came || v.came
		if err != nil {
			return came, err
		}
	}
	return came, nil
}

// discard makes the daemon forget its copy when all else but the last attempt has
// brought corrupt bytes. It happens once: what is wrong then is the table.
func (s *state) discard(ctx context.Context, todo []*flight, origin string) {
	d, ok := s.f.o.Fetch.(Discarder)
	if !ok {
		return
	}
	s.mu.Lock()
	due := false
	for _, fl := range todo {
		due = due || fl.corrupt == maxCorrupt-1
	}
	due = due && !s.discarded
	s.discarded = s.discarded || due
	s.mu.Unlock()
	if !due {
		return
	}
	b := s.blob
	b.Repo = origin
	if err := d.Discard(ctx, b); err != nil {
		s.f.o.Log.Warn("could not discard the daemon's copy of a corrupt blob", "blob", b.Digest, "error", err)
	}
}

// deliver proves, decodes and writes a group whose stored bytes are there.
func (r *run) deliver(ctx context.Context, fl *flight, stored, room []byte) error {
	s := r.s
	g := &s.table.Blob.Groups[fl.group]
	if err := s.f.cpu.Acquire(ctx, 1); err != nil {
		s.release(fl)
		return err
	}
	plain, err := s.table.Decode(fl.group, stored, room)
	s.f.cpu.Release(1)
	if err == nil {
		if err = s.d.Write(fl.group, plain); err != nil {
			err = &writeError{err}
		}
	}
	switch {
	case errors.Is(err, content.ErrCorrupt):
		return s.corrupt(fl, err)
	case err != nil:
		s.f.complain(slog.LevelError, "could not keep a group", "blob", s.table.Blob.Digest, "group", fl.group, "error", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.landLocked(fl, fmt.Errorf("%s: %w", describe(s.table, fl.group), err))
		return err
	}
	s.mu.Lock()
	ahead := fl.waiters == 0
	s.landLocked(fl, nil)
	s.mu.Unlock()
	s.f.o.Metrics.Written(int64(g.Stored), int64(g.Plain), ahead)
	return nil
}

// release undoes a claim.
func (s *state) release(fl *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fl.claimed = false
}

// corrupt takes note of a group that failed verification.
func (s *state) corrupt(fl *flight, err error) error {
	s.f.o.Metrics.Corrupt()
	s.mu.Lock()
	defer s.mu.Unlock()
	fl.claimed = false
	fl.corrupt++
	fl.trouble = err
	final := fl.corrupt >= maxCorrupt
	s.f.o.Log.Warn("a group failed verification", "blob", s.table.Blob.Digest, "group", fl.group,
		"times", fl.corrupt, "final", final, "error", err)
	if final {
		s.landLocked(fl, fmt.Errorf("%s failed verification %d times: %w", describe(s.table, fl.group), fl.corrupt, err))
	}
	return nil
}

// group returns a group of the blob.
func (s *state) group(g int) *chunkfmt.Group { return &s.table.Blob.Groups[g] }
