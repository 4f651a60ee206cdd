package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"
)

// Run keeps the members alike until ctx ends: it calls Sync every Interval, and
// at once after a request has failed.
func (m *Multi) Run(ctx context.Context) error {
	tick := time.NewTicker(m.o.Interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		_ = m.Sync(ctx) // members log their first failure
		if !m.pause(ctx, tick.C) {
			break
		}
	}
	return nil
}

// pause returns false when ctx has ended. After a kick it does not wait for the
// tick, but a member that fails on every Sync kicks each time: so only kicks
// from elsewhere, after Sync has returned, count.
func (m *Multi) pause(ctx context.Context, tick <-chan time.Time) bool {
	select {
	case <-m.kick:
	default:
	}
	select {
	case <-ctx.Done():
		return false
	case <-m.kick:
	case <-tick:
	}
	return true
}

// view is what a Sync knows about one member.
type view struct {
	*member
	instance uint64
	failures int
	has      map[string]uint64 // nil if it gave no answer
	err      error
}

// Sync compares the members, if one of them failed or was started again, and
// gives each what it lacks: what this Multi knows, or else what another member
// has. It takes away what was dropped. The error is that of members that are not
// up to date afterwards.
func (m *Multi) Sync(ctx context.Context) error {
	m.mu.Lock()
	before := m.last
	m.mu.Unlock()
	views, stale := m.look(ctx)
	if !stale {
		return nil
	}
	m.compare(ctx, views)
	for name := range m.names(views) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m.syncName(ctx, name, views)
	}
	return m.conclude(views, before)
}

// look asks the members whether they were started again.
func (m *Multi) look(ctx context.Context) (views []*view, stale bool) {
	views = make([]*view, len(m.members))
	need := make([]bool, len(m.members))
	m.all(ctx, func(ctx context.Context, i int) error {
		v := &view{member: m.members[i]}
		need[i], v.instance, v.failures, v.err = v.stale(ctx)
		views[i] = v
		return v.err
	})
	for _, n := range need {
		stale = stale || n
	}
	return views, stale
}

// compare asks the members what they have.
func (m *Multi) compare(ctx context.Context, views []*view) {
	m.all(ctx, func(ctx context.Context, i int) error {
		v := views[i]
		if v.err != nil {
			return v.err
		}
		entries, err := v.List(ctx)
		if err != nil {
			v.err = fmt.Errorf("%s: %w", v.Name, err)
			return v.err
		}
		v.has = make(map[string]uint64, len(entries))
		for _, e := range entries {
			v.has[e.Name] = e.Stamp
		}
		return nil
	})
}

// names returns every name that somebody has or should not have.
func (m *Multi) names(views []*view) map[string]struct{} {
	names := make(map[string]struct{})
	for _, v := range views {
		for name, stamp := range v.has {
			names[name] = struct{}{}
			m.seen(stamp)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.known {
		names[name] = struct{}{}
	}
	for name := range m.dropped {
		names[name] = struct{}{}
	}
	return names
}

// seen makes later stamps higher than this one.
func (m *Multi) seen(stamp uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.last, stamp)
}

// syncName brings one name up to date in the members that answer.
func (m *Multi) syncName(ctx context.Context, name string, views []*view) {
	defer m.lockName(name)()
	m.mu.Lock()
	set, known := m.known[name]
	_, dropped := m.dropped[name]
	m.mu.Unlock()
	switch {
	case dropped:
		m.update(ctx, views, func(ctx context.Context, v *view) error {
			if _, ok := v.has[name]; !ok {
				return nil
			}
			return v.Drop(ctx, name)
		})
	case known:
		m.give(ctx, views, set)
	default:
		m.copyName(ctx, name, views)
	}
}

// give puts set where it or a newer one is not.
func (m *Multi) give(ctx context.Context, views []*view, set Set) {
	m.update(ctx, views, func(ctx context.Context, v *view) error {
		if stamp, ok := v.has[set.Name]; ok && stamp >= set.Stamp {
			return nil
		}
		err := v.Put(ctx, set)
		switch {
		case errors.Is(err, ErrStale):
			return nil
		case errors.Is(err, os.ErrClosed): // nothing that v could help
			m.o.Log.Error("Descriptors that a keeper lost are closed here too.", "set", set.Name, "keeper", v.Name)
			return nil
		}
		return err
	})
}

// copyName gives the newest set that a member has to those that lack it.
func (m *Multi) copyName(ctx context.Context, name string, views []*view) {
	var from *view
	lacking := false
	for _, v := range views {
		if _, ok := v.has[name]; ok && (from == nil || v.has[name] > from.has[name]) {
			from = v
		}
	}
	for _, v := range views {
		lacking = lacking || from != nil && v.has != nil && v.has[name] != from.has[name]
	}
	if !lacking {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
	defer cancel()
	set, err := from.Get(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return // dropped since it was listed, or systemd's
	}
	if err != nil {
		from.err = errors.Join(from.err, fmt.Errorf("%s: %w", from.Name, err))
		return
	}
	defer set.Close() //nolint:errcheck // duplicates of what from keeps
	m.give(ctx, views, set)
}

// update does something in the members that answered so far, at once.
func (m *Multi) update(ctx context.Context, views []*view, do func(context.Context, *view) error) {
	var wg sync.WaitGroup
	for _, v := range views {
		if v.has == nil || v.err != nil {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, m.o.Timeout)
			defer cancel()
			if err := do(ctx, v); err != nil {
				v.err = fmt.Errorf("%s: %w", v.Name, err)
			}
		})
	}
	wg.Wait()
}

// conclude notes which members are up to date now. If all are, what was dropped
// before the Sync began is forgotten.
func (m *Multi) conclude(views []*view, before uint64) error {
	var errs []error
	for _, v := range views {
		if v.err != nil {
			m.failed(v.member, v.err)
			errs = append(errs, v.err)
		} else {
			m.caughtUp(v.member, v.instance, v.failures)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.dropped, func(_ string, stamp uint64) bool { return stamp <= before })
	return nil
}
