package fill

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// flight is a group on its way. Readers wait for its end, whoever brings it.
type flight struct {
	group int
	done  chan struct{}
	err   error // set before done is closed

	// Guarded by the state's mu.
	waiters int  // readers
	runs    int  // reads that are to bring it
	latest  *run // the last of them
	claimed bool // its bytes are there and are being decoded
	landed  bool // done is closed
	corrupt int  // how often it failed verification
	trouble error
}

// state is what a Filler knows of one device.
type state struct {
	f     *Filler
	d     target
	table *device.Table
	blob  node.Blob // without Repo

	mu        sync.Mutex // taken before f.mu, never after it
	flights   map[int]*flight
	active    map[*run]struct{}
	reads     detector
	forgotten bool // the Filler has another state for the device, or none
	accessed  task.Set
	discarded bool   // the daemon's copy, once
	preferred string // origin
}

func newState(f *Filler, d target) *state {
	t := d.Table()
	ends := make([]int64, len(t.Blob.Groups))
	for i := range t.Blob.Groups {
		ends[i] = end(&t.Blob.Groups[i])
	}
	return &state{
		f: f, d: d, table: t,
		blob:    node.Blob{Digest: t.Blob.Digest, Ends: ends},
		flights: map[int]*flight{}, active: map[*run]struct{}{},
		accessed: task.NewSet(len(ends)),
	}
}

// want lets a reader wait for what is missing of a range, and starts what it
// takes; false if the state is forgotten. The caller gives the flights back with
// unwant.
func (s *state) want(off, n int64) ([]*flight, bool) {
	groups := s.table.Groups(off, n)
	s.mu.Lock()
	if s.forgotten {
		s.mu.Unlock()
		return nil, false
	}
	fresh := s.note(groups)
	wanted, fetch := s.join(groups)
	var ahead []int
	if from, to := s.reads.access(off, n, s.f.o.Readahead); to > from {
		ahead = s.readahead(s.table.Groups(from, to-from))
	}
	s.launch(append(fetch, ahead...), demand)
	s.mu.Unlock()
	for _, g := range fresh {
		s.f.onAccess(s.d, g)
	}
	return wanted, true
}

// note returns the groups that are accessed for the first time, if anybody wants
// to know. mu is held.
func (s *state) note(groups []int) (fresh []int) {
	if s.f.onAccess == nil {
		return nil
	}
	for _, g := range groups {
		if !s.accessed.Has(g) {
			s.accessed.Add(g)
			fresh = append(fresh, g)
		}
	}
	return fresh
}

// join adds a reader to the flights of what is missing, and returns the groups
// that have to be asked for. mu is held.
func (s *state) join(groups []int) (flights []*flight, fetch []int) {
	for _, g := range groups {
		if s.d.Has(g) {
			continue
		}
		fl := s.flights[g]
		switch {
		case fl == nil:
			fl = s.flight(g)
			fetch = append(fetch, g)
		case fl.latest != nil && !fl.claimed && late(fl.latest.placeLocked(g), &s.table.Blob.Groups[g]):
			fetch = append(fetch, g)
		}
		fl.waiters++
		flights = append(flights, fl)
	}
	return flights, fetch
}

// readahead returns those of the groups that are to be brought now. mu is held.
func (s *state) readahead(groups []int) (fetch []int) {
	for _, g := range groups {
		if s.d.Has(g) || s.flights[g] != nil {
			continue
		}
		if !s.f.reserveAhead(int64(s.table.Blob.Groups[g].Plain)) {
			break
		}
		s.flight(g)
		fetch = append(fetch, g)
	}
	return fetch
}

// flight begins one. mu is held.
func (s *state) flight(g int) *flight {
	fl := &flight{group: g, done: make(chan struct{})}
	s.flights[g] = fl
	return fl
}

// unwant ends a reader's wait.
func (s *state) unwant(flights []*flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fl := range flights {
		fl.waiters--
	}
}

// landLocked ends a flight.
func (s *state) landLocked(fl *flight, err error) {
	if fl.landed {
		return
	}
	fl.landed, fl.err = true, err
	if s.flights[fl.group] == fl {
		delete(s.flights, fl.group)
	}
	close(fl.done)
}

// tooLate is the error of a reader that has waited too long for a flight.
func (s *state) tooLate(fl *flight, waited time.Duration) error {
	s.mu.Lock()
	trouble := fl.trouble
	s.mu.Unlock()
	if trouble == nil {
		trouble = context.DeadlineExceeded
	}
	return fmt.Errorf("%s did not come within %v: %w", describe(s.table, fl.group), waited, trouble)
}

// abandon ends the reads that no reader waits for, and waits for their ends.
func (s *state) abandon() {
	s.mu.Lock()
	runs := slices.Collect(maps.Keys(s.active))
	s.mu.Unlock()
	s.end(runs, errForgotten)
}
