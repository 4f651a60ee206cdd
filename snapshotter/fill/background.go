package fill

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

const (
	// completionPart bounds the stored bytes that are fetched at a time in the
	// background: readers that come meanwhile share the link with them.
	completionPart = 2 << 20
	// prefetchPart is the same for Prefetch, prefetchParts how many parts are
	// under way at the same time.
	prefetchPart  = 4 << 20
	prefetchParts = 3
	// Complete waits between firstRest and lastRest after a failure.
	firstRest = 500 * time.Millisecond
	lastRest  = 30 * time.Second
)

// Complete brings all groups of d in the order of the blob, at the lowest
// priority, while no reader waits and as l permits; nil is a Limiter of its own
// with the defaults. It goes on through failures that may pass. It returns nil
// when d is complete, the error of ctx, an error that wraps device.ErrFull, or
// why some groups cannot be had, after it has brought the others.
func (f *Filler) Complete(ctx context.Context, d *device.Device, l *Limiter) error {
	return f.complete(ctx, d, l)
}

func (f *Filler) complete(ctx context.Context, d target, l *Limiter) error {
	if l == nil {
		l = NewLimiter(LimiterOptions{})
	}
	s, err := f.state(d)
	if err != nil {
		return err
	}
	failed := task.NewSet(len(s.table.Blob.Groups))
	var failure error
	rest := firstRest
	for !d.Complete() {
		part := s.absent(failed)
		if len(part) == 0 {
			return failure
		}
		if err := f.demand.quiet(ctx, f.o.Quiet); err != nil {
			return err
		}
		err := l.do(ctx, func() (int64, error) { return s.bring(ctx, part, completion) })
		switch {
		case err == nil:
			rest = firstRest
			continue
		case hopeless(err):
			failure = errors.Join(failure, err)
			for _, g := range part {
				failed.Add(g)
			}
			continue
		case over(ctx, err):
			return err
		}
		if !pause(ctx, rest) {
			return context.Cause(ctx)
		}
		rest = min(2*rest, lastRest)
	}
	return nil
}

// Prefetch brings groups of d that readers are expected to want, in this order.
// It does not yield to readers. Unknown groups are left out, and so are groups
// that cannot be had; any other failure ends it.
func (f *Filler) Prefetch(ctx context.Context, d *device.Device, groups []int) error {
	return f.prefetch(ctx, d, groups)
}

func (f *Filler) prefetch(ctx context.Context, d target, groups []int) error {
	s, err := f.state(d)
	if err != nil {
		return err
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(prefetchParts)
	for wanted := s.known(groups); len(wanted) > 0 && ctx.Err() == nil; {
		var part []int
		part, wanted = batch(s.table.Blob.Groups, wanted, prefetchPart)
		work.Go(func() error {
			if _, err := s.bring(ctx, part, prefetch); err != nil && !hopeless(err) {
				return err
			}
			return nil
		})
	}
	return work.Wait()
}

// hopeless reports whether the groups themselves cannot be had, now or soon.
func hopeless(err error) bool {
	return node.Permanent(err) || errors.Is(err, content.ErrCorrupt)
}

// over reports whether an error ends background work on a device.
func over(ctx context.Context, err error) bool {
	return ctx.Err() != nil || local(err) || errors.Is(err, ErrClosed) || errors.Is(err, errForgotten) || errors.Is(err, errNoOrigin)
}

// places returns the groups that have a place in the device, in the order of the
// blob.
func (s *state) places() []int {
	groups := s.table.Groups(0, s.table.Blob.DeviceSize)
	slices.Sort(groups)
	return slices.Compact(groups)
}

// absent returns the first groups that are missing, as many as are brought at a
// time, without those in except.
func (s *state) absent(except task.Set) []int {
	var part []int
	var size int64
	for _, g := range s.places() {
		if s.d.Has(g) || except.Has(g) {
			continue
		}
		if size += int64(s.group(g).Stored); size > completionPart && len(part) > 0 {
			break
		}
		part = append(part, g)
	}
	return part
}

// known returns those groups that there are and that have a place, each once.
func (s *state) known(groups []int) []int {
	rest := task.NewSet(len(s.table.Blob.Groups))
	for _, g := range s.places() {
		rest.Add(g)
	}
	var known []int
	for _, g := range groups {
		if rest.Has(g) {
			rest.Remove(g)
			known = append(known, g)
		}
	}
	return known
}

// bring fetches groups for nobody in particular, and returns when all of them are
// present or cannot be had. It returns how many stored bytes it has asked for.
func (s *state) bring(ctx context.Context, groups []int, c class) (stored int64, err error) {
	for len(groups) > 0 {
		own, others, runs, ok := s.send(groups, c) //nolint:contextcheck // readers may come to depend on the fetch
		if !ok {
			return stored, errForgotten
		}
		for _, fl := range own {
			stored += int64(s.group(fl.group).Stored)
			select {
			case <-fl.done:
				err = errors.Join(err, fl.err)
			case <-ctx.Done():
				s.end(runs, context.Cause(ctx))
				return stored, context.Cause(ctx)
			}
		}
		groups = nil
		for _, fl := range others {
			if err := waitFor(ctx, fl.done, 0); err != nil {
				return stored, err
			}
			if fl.err != nil { // perhaps because its readers have given up
				groups = append(groups, fl.group)
			}
		}
	}
	return stored, err
}

// send starts fetching those of the groups that are missing, and returns their
// flights, and those that others have started; false if the state is forgotten.
func (s *state) send(groups []int, c class) (own, others []*flight, runs []*run, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotten {
		return nil, nil, nil, false
	}
	var fetch []int
	for _, g := range groups {
		switch fl := s.flights[g]; {
		case s.d.Has(g):
		case fl != nil:
			others = append(others, fl)
		default:
			own = append(own, s.flight(g))
			fetch = append(fetch, g)
		}
	}
	return own, others, s.launch(fetch, c), true
}

// end ends those runs that no reader waits for, and waits for their ends.
func (s *state) end(runs []*run, why error) {
	s.mu.Lock()
	var ending []*run
	for _, r := range runs {
		if !r.wantedLocked() {
			r.cancel(why)
			ending = append(ending, r)
		}
	}
	s.mu.Unlock()
	for _, r := range ending {
		<-r.done
	}
}
