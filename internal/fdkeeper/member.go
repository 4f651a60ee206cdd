package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// instancer is a holder that tells cheaply whether it still has what it had.
type instancer interface {
	Instance(ctx context.Context) (uint64, error)
}

// member is a Member and what Multi knows about it.
type member struct {
	Member

	mu sync.Mutex
	// behind: it may lack something, or have too much.
	behind bool
	// failures counts requests, so that one that fails during a Sync is not
	// taken for made up by it.
	failures int
	// complained: its failure was logged.
	complained bool
	// hangs: it let the last question wait in vain.
	hangs    bool
	instance uint64
}

func (b *member) isBehind() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.behind
}

// stale returns whether the member must be compared, its instance, and its
// failures so far.
func (b *member) stale(ctx context.Context) (bool, uint64, int, error) {
	var instance uint64
	if i, ok := b.Holder.(instancer); ok {
		var err error
		if instance, err = i.Instance(ctx); err != nil {
			return true, 0, 0, fmt.Errorf("%s: %w", b.Name, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.behind || b.instance != instance, instance, b.failures, nil
}

// each does something in the members that are up to date, and in the others too
// if it was done in fewer than need. It returns in how many it was done. Those
// where it failed are behind from then on.
func (m *Multi) each(ctx context.Context, need int, do func(context.Context, Holder) error) (done int, err error) {
	var current, behind []*member
	for _, b := range m.members {
		if b.isBehind() {
			behind = append(behind, b)
		} else {
			current = append(current, b)
		}
	}
	done, err = m.ask(ctx, current, do)
	if done < need {
		more, moreErr := m.ask(ctx, behind, do)
		done, err = done+more, errors.Join(err, moreErr)
	}
	return done, err
}

// ask does something in some members at once.
func (m *Multi) ask(ctx context.Context, members []*member, do func(context.Context, Holder) error) (done int, err error) {
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, b := range members {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
			defer cancel()
			if err := do(ctx, b.Holder); err != nil {
				errs[i] = fmt.Errorf("%s: %w", b.Name, err)
				m.failed(b, errs[i])
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			done++
		}
	}
	return done, errors.Join(errs...)
}

// hangingShare is the part of the timeout that questions wait for a member which
// let the last one wait in vain: a start asks for every set there is.
const hangingShare = 40

// patience is how long a question waits for a member.
func (b *member) patience(timeout time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hangs {
		return timeout / hangingShare
	}
	return timeout
}

// answered notes whether a question got an answer in time.
func (b *member) answered(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hangs = errors.Is(err, context.DeadlineExceeded)
}

// all asks every member, by its index. What fails says nothing about what a
// member has.
func (m *Multi) all(ctx context.Context, do func(ctx context.Context, i int) error) []error {
	return m.allIn(ctx, func(*member) time.Duration { return m.o.Timeout }, do)
}

// allIn is all with a timeout for each member.
func (m *Multi) allIn(ctx context.Context, timeout func(*member) time.Duration, do func(ctx context.Context, i int) error) []error {
	errs := make([]error, len(m.members))
	var wg sync.WaitGroup
	for i, b := range m.members {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, timeout(b))
			defer cancel()
			err := do(ctx, i)
			b.answered(err)
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", b.Name, err)
			}
		})
	}
	wg.Wait()
	return errs
}

// failed notes that b is not up to date any more, and has Run look at it.
func (m *Multi) failed(b *member, err error) {
	b.mu.Lock()
	first := !b.complained
	b.complained, b.behind = true, true
	b.failures++
	b.mu.Unlock()
	if first {
		m.o.Log.Warn("A keeper of descriptors failed and is tried again.", "keeper", b.Name, "error", err)
	}
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// caughtUp notes that b has what it should, unless a request has failed since.
func (m *Multi) caughtUp(b *member, instance uint64, failures int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures != failures {
		return
	}
	if b.complained {
		m.o.Log.Info("A keeper of descriptors is up to date again.", "keeper", b.Name)
	}
	b.behind, b.complained, b.instance = false, false, instance
}
