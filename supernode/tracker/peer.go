package tracker

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
)

// peer is one connected daemon.
type peer struct {
	name, zone, rack, address, version string

	seed string     // where it reaches the supernode's pieces
	key  ticket.Key // what it checks tickets with

	cancel context.CancelCauseFunc // ends the stream
	out    outbox

	// asking and accusing bound what the peer has the supernode do at a time.
	asking   *semaphore.Weighted
	accusing *semaphore.Weighted

	announced int // tasks and pieces of its memberships; guarded by Tracker.mu
}

// What one peer may cause at most. An honest one stays far below.
const (
	maxAsking    = 512     // requests that wait for an origin
	maxAccusing  = 4       // reports that are being looked into; others are dropped
	maxAnnounced = 1 << 23 // tasks and pieces that it takes part in
	maxQueue     = 1 << 16 // messages that it does not read
	maxRanges    = 4096    // ranges in one request
)

// outbox holds what is to be sent to a daemon: messages in order, and the tasks
// about which there is news.
type outbox struct {
	mu     sync.Mutex
	queue  []*apiv1.SupernodeMessage
	dirty  map[task.ID]news
	signal chan struct{} // 1-buffered
	full   func()        // called when the daemon does not read its messages
}

// news says what has changed about a task since it was last sent.
type news uint8

const (
	newParents news = 1 << iota
	newDigests
)

var errNotReading = status.Error(codes.ResourceExhausted, "the daemon does not read its messages")

func newOutbox(cancel context.CancelCauseFunc) outbox {
	return outbox{full: func() { cancel(errNotReading) }, dirty: map[task.ID]news{}, signal: make(chan struct{}, 1)}
}

// send queues m.
func (o *outbox) send(m *apiv1.SupernodeMessage) {
	o.mu.Lock()
	full := len(o.queue) >= maxQueue
	if !full {
		o.queue = append(o.queue, m)
	}
	o.mu.Unlock()
	if full {
		o.full()
	}
	o.wake()
}

// mark notes news about a task.
func (o *outbox) mark(id task.ID, n news) {
	o.mu.Lock()
	known := o.dirty[id]&n == n
	o.dirty[id] |= n
	o.mu.Unlock()
	if !known {
		o.wake()
	}
}

func (o *outbox) wake() {
	select {
	case o.signal <- struct{}{}:
	default:
	}
}

// take empties the outbox.
func (o *outbox) take() ([]*apiv1.SupernodeMessage, map[task.ID]news) {
	o.mu.Lock()
	defer o.mu.Unlock()
	queue := o.queue
	o.queue = nil
	if len(o.dirty) == 0 {
		return queue, nil // not the map itself, which mark goes on writing to
	}
	dirty := o.dirty
	o.dirty = map[task.ID]news{}
	return queue, dirty
}

// sender is the sending half of a stream.
type sender interface {
	Send(*apiv1.SupernodeMessage) error
}

// deliver sends what is in p's outbox until ctx ends or the stream breaks.
func (t *Tracker) deliver(ctx context.Context, p *peer, stream sender) error {
	later := map[task.ID]bool{} // whose parents are to be sent when due fires
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.out.signal:
		case <-due.C:
			for id := range later {
				p.out.mark(id, newParents)
			}
			clear(later)
		}
		queue, dirty := p.out.take()
		for _, m := range queue {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		for id, n := range dirty {
			messages, wait := t.compose(p, id, n)
			for _, m := range messages {
				if err := stream.Send(m); err != nil {
					return err
				}
			}
			if wait > 0 {
				later[id] = true
				due.Reset(wait)
			}
		}
	}
}
