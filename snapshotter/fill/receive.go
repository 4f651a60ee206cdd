package fill

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// receiver takes one read of neighbouring groups apart.
type receiver struct {
	r      *run
	ctx    context.Context //nolint:containedctx // that of the attempt, which is one call
	cancel context.CancelCauseFunc
	next   []*flight // to come, in the order of the blob
	off    int64     // in the blob, of the next byte
	came   bool

	load  *load // what the first of next is collected in; nil: not begun
	stall *time.Timer

	wg  sync.WaitGroup
	mu  sync.Mutex
	err error // of a delivery
}

// load is a group being collected, with the memory to decode it into.
type load struct {
	stored, plain []byte
	weight        int64
}

// receive makes the read and waits for what it brings.
func (v *receiver) receive(origin string) error {
	f, s := v.r.s.f, v.r.s
	first, last := s.group(v.next[0].group), s.group(v.next[len(v.next)-1].group)
	v.off = first.Offset
	// Memory comes first, so that requests do not pile up at the daemon.
	if err := v.begin(); err != nil {
		return v.finish(err)
	}
	v.stall = time.AfterFunc(f.o.Stall, func() { v.cancel(errStalled) })
	defer v.stall.Stop()
	b := s.blob
	b.Repo = origin
	err := f.o.Fetch.Stream(v.ctx, b, first.Offset, end(last)-first.Offset, v.r.class.priority(), v)
	if errors.Is(context.Cause(v.ctx), errStalled) {
		err = errStalled
	}
	return v.finish(err)
}

// finish waits for the deliveries and returns the attempt's error.
func (v *receiver) finish(err error) error {
	v.wg.Wait()
	v.drop()
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.err != nil:
		return v.err
	case errors.Is(err, errEnough):
		return nil
	}
	return err
}

// begin finds the next group that is still needed, and memory for it.
func (v *receiver) begin() error {
	s := v.r.s
	s.mu.Lock()
	for len(v.next) > 0 && (v.next[0].landed || v.next[0].claimed) {
		v.next = v.next[1:]
	}
	s.mu.Unlock()
	if len(v.next) == 0 {
		return errEnough
	}
	l, err := s.f.allocate(v.ctx, v.r.class, s.table.Blob.Unproven, s.group(v.next[0].group))
	v.load = l
	return err
}

// drop gives the memory of what did not come back.
func (v *receiver) drop() {
	if v.load != nil {
		v.r.s.f.free(v.r.class, v.load)
		v.load = nil
	}
}

// Write takes the next bytes of the blob.
func (v *receiver) Write(p []byte) (int, error) {
	v.stall.Stop() // while it is not the sender who is waited for
	defer v.stall.Reset(v.r.s.f.o.Stall)
	for done := 0; done < len(p); {
		if v.load == nil {
			if err := v.begin(); err != nil {
				return done, err
			}
		}
		g := v.r.s.group(v.next[0].group)
		start := g.Offset + int64(len(v.load.stored))
		if skip := start - v.off; skip > 0 { // between groups that are wanted
			n := int(min(skip, int64(len(p)-done)))
			done, v.off = done+n, v.off+int64(n)
			continue
		}
		n := min(int(g.Stored)-len(v.load.stored), len(p)-done)
		v.load.stored = append(v.load.stored, p[done:done+n]...)
		done, v.off = done+n, v.off+int64(n)
		v.progress(g)
		if len(v.load.stored) == int(g.Stored) {
			if err := v.complete(); err != nil {
				return done, err
			}
		}
	}
	return len(p), nil
}

// progress tells readers how far the run has come.
func (v *receiver) progress(g *chunkfmt.Group) {
	v.came = true
	s := v.r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	v.r.at, v.r.current = v.off, v.next[0].group
	if v.off == end(g) {
		v.r.current = -1
	}
}

// complete hands a group on whose bytes are there.
func (v *receiver) complete() error {
	fl, l := v.next[0], v.load
	v.next, v.load = v.next[1:], nil
	if !v.r.s.claim(fl) {
		v.r.s.f.free(v.r.class, l)
		return nil
	}
	if len(v.next) == 0 || v.r.class == completion {
		v.deliver(fl, l)
	} else {
		v.wg.Go(func() { v.deliver(fl, l) })
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func (v *receiver) deliver(fl *flight, l *load) {
	err := v.r.deliver(v.ctx, fl, l.stored, l.plain)
	v.r.s.f.free(v.r.class, l)
	if err != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.err = errors.Join(v.err, err)
	}
}

// claim makes the caller the one who delivers a flight.
func (s *state) claim(fl *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fl.claimed || fl.landed {
		return false
	}
	fl.claimed = true
	return true
}
