package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	defaultInterval = 2 * time.Second
	defaultTimeout  = 2 * time.Second
)

// MultiOptions configure a Multi. The zero value works.
type MultiOptions struct {
	// Need is how many holders must have a set before Put returns. Default: 1.
	Need int
	// Timeout is how long one holder may take for one request. Default: two
	// seconds.
	Timeout time.Duration
	// Interval is how often Run looks for holders that lost what they had.
	// Default: two seconds.
	Interval time.Duration
	// Log is told when holders fail. Default: nowhere.
	Log *slog.Logger
	// Now makes stamps. Default: time.Now.
	Now func() time.Time
}

// Member is a holder of a Multi.
type Member struct {
	// Name in logs and errors.
	Name string
	Holder
}

// Multi keeps every set in all its members. It is a Holder for one process at a
// time: it gives the stamps.
//
// Unlike with other holders, what is Put or comes from Get must stay open until
// it is dropped or put again: from it Run restores a member that lost it. A
// member that failed gets nothing more until Run has brought it up to date, so
// that one that hangs delays one request and not all.
type Multi struct {
	o       MultiOptions
	members []*member
	seed    maphash.Seed
	// locks serialize what is done with one name. They are locked before mu.
	locks [64]sync.Mutex
	kick  chan struct{}

	mu      sync.Mutex
	known   map[string]Set
	dropped map[string]uint64 // stamps of what must not come back
	last    uint64            // the newest stamp given or seen
}

var _ Holder = (*Multi)(nil)

// NewMulti returns a Multi. Nothing is sent before its methods are called.
func NewMulti(o MultiOptions, members ...Member) (*Multi, error) {
	if o.Need == 0 {
		o.Need = 1
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Need < 1 || o.Need > len(members) || o.Timeout < 0 || o.Interval < 0 {
		return nil, fmt.Errorf("keepers: %d members of which %d must hold a set, timeout %v, interval %v: %w",
			len(members), o.Need, o.Timeout, o.Interval, ErrInvalid)
	}
	m := &Multi{
		o: o, seed: maphash.MakeSeed(), kick: make(chan struct{}, 1),
		known: make(map[string]Set), dropped: make(map[string]uint64),
	}
	for _, one := range members {
		// What members hold from before is compared first.
		m.members = append(m.members, &member{Member: one, behind: true})
	}
	return m, nil
}

// Put gives s the next stamp and has all members hold it. It returns nil when
// Need of them do; the others get it from Run. After an error none keeps it.
func (m *Multi) Put(ctx context.Context, s Set) error {
	if err := checkSet(s); err != nil {
		return fmt.Errorf("put %q: %w", s.Name, err)
	}
	defer m.lockName(s.Name)()
	m.mu.Lock()
	m.last = max(m.last+1, uint64(max(m.o.Now().UnixNano(), 0)))
	s.Stamp = m.last
	m.known[s.Name] = s
	delete(m.dropped, s.Name)
	m.mu.Unlock()
	done, err := m.each(ctx, m.o.Need, func(ctx context.Context, h Holder) error { return h.Put(ctx, s) })
	if done >= m.o.Need {
		return nil
	}
	// The caller gives up; its context may have ended.
	return errors.Join(fmt.Errorf("put %q: %w", s.Name, err), m.dropLocked(context.WithoutCancel(ctx), s.Name))
}

// Get returns the newest set of that name. The error wraps ErrNotFound only if
// all members answered that they do not have it.
func (m *Multi) Get(ctx context.Context, name string) (Set, error) {
	defer m.lockName(name)()
	sets := make([]Set, len(m.members))
	patience := func(b *member) time.Duration { return b.patience(m.o.Timeout) }
	errs := m.allIn(ctx, patience, func(ctx context.Context, i int) (err error) {
		sets[i], err = m.members[i].Get(ctx, name)
		return err
	})
	best := -1
	for i, s := range sets {
		if errs[i] == nil && (best < 0 || s.Stamp > sets[best].Stamp) {
			best = i
		}
	}
	for i, s := range sets {
		if i != best {
			_ = s.Close() // a second descriptor of what is kept, or of what is stale
		}
	}
	if best < 0 {
		return Set{}, fmt.Errorf("get %q: %w", name, absent(errs))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := sets[best]
	m.last = max(m.last, s.Stamp)
	// Of two that are the same, the caller may have closed the earlier one.
	if old, ok := m.known[name]; !ok || old.Stamp <= s.Stamp {
		m.known[name] = s
	}
	return s, nil
}

// absent leaves out ErrNotFound of some members if others gave no answer.
func absent(errs []error) error {
	var other []error
	for _, err := range errs {
		if !errors.Is(err, ErrNotFound) {
			other = append(other, err)
		}
	}
	if len(other) > 0 {
		return errors.Join(other...)
	}
	return errors.Join(errs...)
}

// List returns what any member has, each name with its newest stamp. With an
// error, which is one of members that gave no answer, it still returns what the
// others have.
func (m *Multi) List(ctx context.Context) ([]Entry, error) {
	lists := make([][]Entry, len(m.members))
	errs := m.all(ctx, func(ctx context.Context, i int) (err error) {
		lists[i], err = m.members[i].List(ctx)
		return err
	})
	entries := merge(lists)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range entries {
		m.last = max(m.last, e.Stamp)
	}
	return entries, errors.Join(errs...)
}

func merge(lists [][]Entry) []Entry {
	newest := make(map[string]Entry)
	for _, list := range lists {
		for _, e := range list {
			if old, ok := newest[e.Name]; !ok || e.Stamp > old.Stamp {
				newest[e.Name] = e
			}
		}
	}
	entries := make([]Entry, 0, len(newest))
	for _, e := range newest {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries
}

// Drop has all members close the set. Members that are not up to date are told
// by Run, and so are those whose error it returns.
func (m *Multi) Drop(ctx context.Context, name string) error {
	defer m.lockName(name)()
	return m.dropLocked(ctx, name)
}

// dropLocked is Drop with the name locked.
func (m *Multi) dropLocked(ctx context.Context, name string) error {
	m.mu.Lock()
	m.last++
	m.dropped[name] = m.last
	delete(m.known, name)
	m.mu.Unlock()
	done, err := m.each(ctx, 1, func(ctx context.Context, h Holder) error { return h.Drop(ctx, name) })
	if done == len(m.members) {
		m.mu.Lock()
		delete(m.dropped, name)
		m.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("drop %q: %w", name, err)
	}
	return nil
}

// lockName serializes with all others that do something with the name.
func (m *Multi) lockName(name string) (unlock func()) {
	mu := &m.locks[maphash.String(m.seed, name)%uint64(len(m.locks))]
	mu.Lock()
	return mu.Unlock
}
