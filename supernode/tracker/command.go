package tracker

import (
	"slices"
	"sync"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Outcome is how a command stands at one peer.
type Outcome struct {
	Done  bool
	Error string // why it failed; empty otherwise
}

// command is an order to a set of peers to hold a task.
type command struct {
	id   uint64
	task task.ID

	mu     sync.Mutex
	peers  map[string]*Outcome
	update func()
}

// set notes how the command stands at a peer and tells the owner.
func (c *command) set(peer string, o Outcome) {
	c.mu.Lock()
	old, ok := c.peers[peer]
	if ok && !old.Done && old.Error == "" {
		*old = o
	}
	c.mu.Unlock()
	if ok {
		c.update()
	}
}

// gone notes that a peer has left.
func (c *command) gone(peer string) { c.set(peer, Outcome{Error: "the node has left the cluster"}) }

// Order tells peers to hold the content of src and returns the number of the
// command. update is called, on any goroutine, without locks of the caller's,
// whenever Outcomes may have changed; it must not block. Peers that are not
// connected fail at once.
func (t *Tracker) Order(peers []string, src wire.Source, priority apiv1.Priority, update func()) uint64 {
	t.mu.Lock()
	t.nextID++
	c := &command{id: t.nextID, task: src.ID, peers: map[string]*Outcome{}, update: update}
	t.commands[c.id] = c
	msg := &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Command{Command: &apiv1.Command{
		Id: c.id, Source: wire.FromSource(src), Priority: priority,
	}}}
	var missing []string
	for _, name := range peers {
		c.peers[name] = &Outcome{}
		if p, ok := t.peers[name]; ok {
			p.out.send(msg)
		} else {
			missing = append(missing, name)
		}
	}
	t.mu.Unlock()
	for _, name := range missing {
		c.set(name, Outcome{Error: "the node is not connected"})
	}
	return c.id
}

// Outcomes returns how a command stands at each of its peers.
func (t *Tracker) Outcomes(id uint64) map[string]Outcome {
	t.mu.Lock()
	c := t.commands[id]
	t.mu.Unlock()
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]Outcome, len(c.peers))
	for name, o := range c.peers {
		out[name] = *o
	}
	return out
}

// Forget ends a command; peers that are still at it are told to stop.
func (t *Tracker) Forget(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.commands[id]
	if c == nil {
		return
	}
	delete(t.commands, id)
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, o := range c.peers {
		if p, ok := t.peers[name]; ok && !o.Done && o.Error == "" {
			p.out.send(&apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Command{Command: &apiv1.Command{Id: id, Cancel: true}}})
		}
	}
}

// ordered reports whether command id was given to peer.
func (t *Tracker) ordered(peer string, id uint64) bool {
	t.mu.Lock()
	c := t.commands[id]
	t.mu.Unlock()
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.peers[peer]
	return ok
}

func (t *Tracker) commandStatus(p *peer, s *apiv1.CommandStatus) {
	t.mu.Lock()
	c := t.commands[s.Id]
	t.mu.Unlock()
	if c != nil {
		c.set(p.name, Outcome{Done: s.Done && s.Error == "", Error: s.Error})
	}
}

// commandProgress tells the owners of commands for id that peer got further.
func (t *Tracker) commandProgress(id task.ID, peer string) {
	t.mu.Lock()
	var owners []*command
	for _, c := range t.commands {
		if c.task == id {
			owners = append(owners, c)
		}
	}
	t.mu.Unlock()
	for _, c := range owners {
		c.mu.Lock()
		_, ok := c.peers[peer]
		c.mu.Unlock()
		if ok {
			c.update()
		}
	}
}

// HeldBytes returns how much of id a peer has said that it holds.
func (t *Tracker) HeldBytes(id task.ID, peer string) int64 {
	s := t.find(id)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[peer]
	switch {
	case !ok:
		return 0
	case m.complete:
		return s.table.Length
	}
	n := int64(0)
	for i := range m.held.All() {
		_, size := s.table.Piece(i)
		n += size
	}
	return n
}

// Holders lists the peers that hold pieces of id, by name.
func (t *Tracker) Holders(id task.ID) []string {
	s := t.find(id)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, m := range s.members {
		if m.complete || m.held.Len() > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
