package preheat

import (
	"slices"
	"sync"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// Hub passes the cache's events on to next and to the jobs that wait for them.
// It is made before the cache, whose Options.Events it becomes, and given to
// the Manager.
type Hub struct {
	next cdn.Events

	mu   sync.Mutex
	subs map[task.ID][]*subscription
}

var _ cdn.Events = (*Hub)(nil)

// NewHub returns a hub; next may be nil.
func NewHub(next cdn.Events) *Hub {
	return &Hub{next: next, subs: map[task.ID][]*subscription{}}
}

// Published implements cdn.Events.
func (h *Hub) Published(id task.ID) {
	if h.next != nil {
		h.next.Published(id)
	}
	h.tell(id, nil, false)
}

// Revoked implements cdn.Events.
func (h *Hub) Revoked(id task.ID, reason error) {
	if h.next != nil {
		h.next.Revoked(id, reason)
	}
	h.tell(id, reason, true)
}

// Failed implements cdn.Events.
func (h *Hub) Failed(id task.ID, reason error) {
	if h.next != nil {
		h.next.Failed(id, reason)
	}
	h.tell(id, reason, false)
}

// subscription is a job's interest in one task.
type subscription struct {
	wake func() // must not block

	mu      sync.Mutex
	failure error
	revoked bool
}

func (h *Hub) subscribe(id task.ID, wake func()) *subscription {
	s := &subscription{wake: wake}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs[id] = append(h.subs[id], s)
	return s
}

func (h *Hub) unsubscribe(id task.ID, s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// A copy: tell may be going through the old one.
	rest := slices.DeleteFunc(slices.Clone(h.subs[id]), func(x *subscription) bool { return x == s })
	if len(rest) == 0 {
		delete(h.subs, id)
	} else {
		h.subs[id] = rest
	}
}

func (h *Hub) tell(id task.ID, failure error, revoked bool) {
	h.mu.Lock()
	subs := h.subs[id]
	h.mu.Unlock()
	for _, s := range subs {
		if failure != nil {
			s.mu.Lock()
			s.failure, s.revoked = failure, s.revoked || revoked
			s.mu.Unlock()
		}
		s.wake()
	}
}

// takeFailure returns the failure since the last call, nil if there was none.
func (s *subscription) takeFailure() (revoked bool, failure error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	revoked, failure = s.revoked, s.failure
	s.revoked, s.failure = false, nil
	return revoked, failure
}
