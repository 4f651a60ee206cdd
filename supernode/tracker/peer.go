package tracker

import (
	"context"
	"sync"
	"time"

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
}

// outbox holds what is to be sent to a daemon: messages in order, and the tasks
// about which there is news.
type outbox struct {
	mu     sync.Mutex
	queue  []*apiv1.SupernodeMessage
	dirty  map[task.ID]news
	signal chan struct{} // 1-buffered
}

// news says what has changed about a task since it was last sent.
type news uint8

const (
	newParents news = 1 << iota
	newDigests
)

func newOutbox() outbox {
	return outbox{dirty: map[task.ID]news{}, signal: make(chan struct{}, 1)}
}

// send queues m.
func (o *outbox) send(m *apiv1.SupernodeMessage) {
	o.mu.Lock()
	o.queue = append(o.queue, m)
	o.mu.Unlock()
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
	queue, dirty := o.queue, o.dirty
	o.queue = nil
	if len(dirty) > 0 {
		o.dirty = map[task.ID]news{}
	}
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
