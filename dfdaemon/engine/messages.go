package engine

import (
	"context"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Connected announces what is held and wanted to a supernode that may know
// nothing.
func (e *Engine) Connected() {
	for _, info := range e.o.Store.List() {
		t, ok := e.o.Store.Get(info.ID)
		if !ok {
			continue
		}
		if m := announcement(t); m != nil {
			e.o.Supernode.Send(m)
		}
		t.Release()
	}
	for _, d := range e.all() {
		d.post(d.reconnected)
	}
	e.mu.Lock()
	pending := make([]*pending, 0, len(e.pending))
	for _, p := range e.pending {
		pending = append(pending, p)
	}
	e.mu.Unlock()
	for _, p := range pending {
		e.o.Supernode.Send(p.interest)
	}
}

// announcement says which pieces of t may be offered to peers; nil if none.
func announcement(t *piecestore.Task) *apiv1.PeerMessage {
	proven := t.Proven()
	if proven.Len() == 0 && t.Table().Count() > 0 {
		return nil
	}
	held := &apiv1.Held{TaskId: string(t.ID()), Table: wire.FromTable(t.Table()), Complete: t.Complete()}
	if !held.Complete {
		held.Pieces = proven.Bytes()
	}
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Held{Held: held}}
}

// Disconnected lets downloads look for other ways.
func (e *Engine) Disconnected() {
	for _, d := range e.all() {
		d.post(func() {})
	}
}

// Removed tells the supernode that a task has left the store.
func (e *Engine) Removed(id task.ID) {
	e.mu.Lock()
	delete(e.from, id)
	e.mu.Unlock()
	e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{TaskId: string(id)}}})
}

// Damaged tells the supernode that a piece was found damaged.
func (e *Engine) Damaged(id task.ID, piece int) {
	e.o.Rejected("damaged")
	e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{
		TaskId: string(id), Pieces: []uint32{uint32(piece)}, // #nosec G115 -- a piece number
	}}})
	if d := e.find(string(id)); d != nil {
		d.post(func() {})
	}
}

// Receive handles one message of the supernode.
func (e *Engine) Receive(m *apiv1.SupernodeMessage) {
	switch k := m.Kind.(type) {
	case *apiv1.SupernodeMessage_TaskInfo:
		e.taskInfo(k.TaskInfo)
	case *apiv1.SupernodeMessage_Failure:
		e.failure(k.Failure)
	case *apiv1.SupernodeMessage_Parents:
		if d := e.find(k.Parents.TaskId); d != nil {
			d.post(func() { d.setParents(k.Parents) })
		}
	case *apiv1.SupernodeMessage_Digests:
		if d := e.find(k.Digests.TaskId); d != nil {
			d.post(func() { d.setDigests(k.Digests) })
		}
	case *apiv1.SupernodeMessage_Revoked:
		e.revoked(k.Revoked)
	case *apiv1.SupernodeMessage_Quarantined:
		e.quarantine(k.Quarantined.Names)
	case *apiv1.SupernodeMessage_Command:
		e.command(k.Command)
	}
}

func (e *Engine) taskInfo(info *apiv1.TaskInfo) {
	e.mu.Lock()
	p := e.pending[info.Request]
	delete(e.pending, info.Request)
	e.mu.Unlock()
	if p != nil {
		p.found(e, info)
		return
	}
	if d := e.find(info.TaskId); d != nil {
		d.post(func() { d.setInfo(info) })
	}
}

func (e *Engine) failure(f *apiv1.Failure) {
	err := &Failure{
		ID: task.ID(f.TaskId), Status: int(f.HttpStatus), Header: wire.Header(f.Headers),
		Message: f.Message, Permanent: f.Permanent,
	}
	e.mu.Lock()
	p := e.pending[f.Request]
	delete(e.pending, f.Request)
	e.mu.Unlock()
	if p != nil {
		p.done <- result{err: err}
		return
	}
	if d := e.find(f.TaskId); d != nil {
		d.post(func() { d.refused(f.Request, err) })
	}
}

// revoked drops a task that the supernode found to be wrong.
func (e *Engine) revoked(r *apiv1.Revoked) {
	e.o.Rejected("revoked")
	id := task.ID(r.TaskId)
	e.o.Log.Error("the supernode revoked a task", "task", id, "reason", r.Reason)
	if d := e.find(r.TaskId); d != nil {
		d.post(func() { d.fail(&Failure{ID: id, Message: r.Reason, Permanent: true}) })
	}
	t, ok := e.o.Store.Get(id)
	if !ok {
		return
	}
	defer t.Release()
	if err := t.Reset(); err != nil {
		e.o.Log.Error("dropping a revoked task", "task", id, "error", err)
	}
}

// quarantineTime is how long this node keeps away from a quarantined peer; the
// supernode leaves it out of lists of parents for as long as it finds right.
const quarantineTime = 10 * time.Minute

func (e *Engine) quarantine(names []string) {
	e.mu.Lock()
	for _, name := range names {
		e.quarantined[name] = e.o.Now().Add(quarantineTime)
	}
	e.mu.Unlock()
	for _, d := range e.all() {
		d.post(func() {
			for _, name := range names {
				d.dropParent(name)
			}
		})
	}
}

// command holds a task because the supernode asks for it.
func (e *Engine) command(c *apiv1.Command) {
	if c.Cancel {
		e.mu.Lock()
		cancel := e.commands[c.Id]
		e.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil || e.commands[c.Id] != nil {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx)
	e.commands[c.Id] = cancel
	e.wg.Go(func() {
		defer cancel()
		status := &apiv1.CommandStatus{Id: c.Id, Done: true}
		if err := e.obey(ctx, c); err != nil {
			status.Error = err.Error()
		}
		e.mu.Lock()
		delete(e.commands, c.Id)
		e.mu.Unlock()
		e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_CommandStatus{CommandStatus: status}})
	})
}

// obey returns when the task of c is complete.
func (e *Engine) obey(ctx context.Context, c *apiv1.Command) error {
	src, err := wire.Request(c.Source)
	if err != nil {
		return err
	}
	h, err := e.Open(ctx, Request{Source: src, Priority: pieces.Priority(c.Priority), Whole: true, Authorized: true, command: c.Id})
	if err != nil {
		return err
	}
	defer h.Close()
	return h.WaitComplete(ctx)
}
