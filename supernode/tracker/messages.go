package tracker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// receiver is the receiving half of a stream.
type receiver interface {
	Recv() (*apiv1.PeerMessage, error)
}

// receive handles p's messages until the stream ends; it returns why.
func (t *Tracker) receive(ctx context.Context, p *peer, stream receiver) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := t.handle(ctx, p, m); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// handle applies one message. An error means that the daemon does not keep to
// the protocol.
func (t *Tracker) handle(ctx context.Context, p *peer, m *apiv1.PeerMessage) error {
	switch k := m.Kind.(type) {
	case *apiv1.PeerMessage_Interest:
		t.interest(ctx, p, k.Interest)
	case *apiv1.PeerMessage_Leave:
		return t.onSwarm(k.Leave.TaskId, func(s *swarm) { s.leave(p) })
	case *apiv1.PeerMessage_Held:
		return t.held(p, k.Held)
	case *apiv1.PeerMessage_Finished:
		return t.onSwarm(k.Finished.TaskId, func(s *swarm) { s.finished(p, k.Finished) })
	case *apiv1.PeerMessage_Dropped:
		return t.onSwarm(k.Dropped.TaskId, func(s *swarm) { s.dropped(p, k.Dropped) })
	case *apiv1.PeerMessage_BadPiece:
		if p.accusing.TryAcquire(1) {
			t.wg.Go(func() { //nolint:contextcheck // the report counts though the reporter may leave
				defer p.accusing.Release(1)
				t.accuse(p, k.BadPiece)
			})
		}
	case *apiv1.PeerMessage_Starved:
		return t.starved(p, k.Starved)
	case *apiv1.PeerMessage_CommandStatus:
		t.commandStatus(p, k.CommandStatus)
	case *apiv1.PeerMessage_Hello:
		return errors.New("a second Hello")
	}
	return nil // a kind that a newer daemon knows
}

// onSwarm runs f on the swarm that rawID names, if there is one.
func (t *Tracker) onSwarm(rawID string, f func(*swarm)) error {
	id, err := task.ParseID(rawID)
	if err != nil {
		return err
	}
	if s := t.find(id); s != nil {
		f(s)
	}
	return nil
}

// interest makes p a member of the swarm that it asks for, at once if nobody has
// to be asked: when a thousand peers come together, a goroutine for each of
// their requests is most of what they cost.
func (t *Tracker) interest(ctx context.Context, p *peer, m *apiv1.Interest) {
	r, err := t.request(p, m)
	if err != nil {
		p.out.send(failure(m.Request, "", err))
		return
	}
	if obj := t.cache.Known(r); obj != nil { //nolint:contextcheck // fetches outlive the requests that start them
		t.admit(p, m, r, obj) //nolint:contextcheck // fetches outlive the requests that start them
		return
	}
	if p.asking.Acquire(ctx, 1) != nil {
		return // it has gone
	}
	t.wg.Go(func() {
		defer p.asking.Release(1)
		obj, err := t.cache.Ensure(ctx, r)
		if err != nil {
			p.out.send(failure(m.Request, string(r.ID), err))
			return
		}
		t.admit(p, m, r, obj) //nolint:contextcheck // fetches outlive the requests that start them
	})
}

// request turns a message into what the cache understands.
func (t *Tracker) request(p *peer, m *apiv1.Interest) (cdn.Request, error) {
	r, err := wire.Request(m.Source)
	if err != nil {
		return cdn.Request{}, err
	}
	req := cdn.Request{
		ID: r.ID, URL: r.URL, Header: r.Header, Credential: r.Credential, Table: r.Table,
		Authorized: m.Authorized || t.ordered(p.name, m.Command), Whole: m.Whole,
		Node: p.name, Ahead: m.Priority != apiv1.Priority_PRIORITY_DEMAND,
	}
	if len(m.Ranges) > maxRanges {
		return cdn.Request{}, fmt.Errorf("%w: %d ranges, at most %d", wire.ErrInvalid, len(m.Ranges), maxRanges)
	}
	for _, rg := range m.Ranges {
		req.Ranges = append(req.Ranges, cdn.Range{Offset: rg.Offset, Length: rg.Length})
	}
	return req, nil
}

// failure describes err to a daemon.
func failure(request uint64, id string, err error) *apiv1.SupernodeMessage {
	f := &apiv1.Failure{Request: request, TaskId: id, Message: err.Error(), Permanent: origin.IsPermanent(err) || errors.Is(err, wire.ErrInvalid)}
	var answer *origin.StatusError
	if errors.As(err, &answer) {
		f.HttpStatus = int32(answer.Status) // #nosec G115 -- an HTTP status
		for _, name := range []string{"Www-Authenticate", "Retry-After", "Docker-Distribution-Api-Version"} {
			for _, v := range answer.Header.Values(name) {
				f.Headers = append(f.Headers, &apiv1.Header{Name: http.CanonicalHeaderKey(name), Value: v})
			}
		}
	}
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Failure{Failure: f}}
}

// admit enters p into the swarm of obj, whose reference it takes over, and
// answers the request.
func (t *Tracker) admit(p *peer, m *apiv1.Interest, r cdn.Request, obj *cdn.Object) {
	info := describe(m.Request, obj)
	if r.ID != "" && t.takesPart(p, obj) {
		info.Table = nil
	}
	p.out.send(&apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_TaskInfo{TaskInfo: info}})
	t.mu.Lock()
	if t.peers[p.name] != p {
		t.mu.Unlock()
		obj.Release()
		return
	}
	s := t.swarmLocked(obj.ID(), obj.Table())
	s.mu.Lock()
	if s.obj == nil {
		s.recutLocked(obj.Table())
		s.obj = obj
	} else {
		t.wg.Go(obj.Release)
	}
	mem := s.memberLocked(p)
	mem.interested, mem.whole = true, mem.whole || m.Whole
	if !mem.whole {
		if mem.wanted == nil {
			mem.wanted = task.NewSet(s.table.Count())
		}
		for _, rg := range r.Ranges {
			mem.wanted.AddRange(s.table.Span(rg.Offset, rg.Length))
		}
	}
	s.linkLocked(mem)
	s.sharesLocked(p.zone)
	s.obj.Resume(r) // of a failure until now p has not been told
	s.mu.Unlock()
	t.mu.Unlock()
	p.out.mark(s.id, newParents|newDigests)
	s.refresh()
	s.offer()
}

// held takes over what p announces of one task.
func (t *Tracker) held(p *peer, m *apiv1.Held) error {
	id, err := task.ParseID(m.TaskId)
	if err != nil {
		return err
	}
	table, err := wire.Table(m.Table)
	if err != nil {
		return err
	}
	held := task.FullSet(table.Count())
	if !m.Complete {
		if held, err = task.ParseSet(m.Pieces, table.Count()); err != nil {
			return err
		}
	}
	if held.Len() == 0 && !m.Complete {
		return t.onSwarm(m.TaskId, func(s *swarm) { s.dropped(p, &apiv1.Dropped{}) })
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.peers[p.name] != p || p.announced+table.Count() >= maxAnnounced {
		return nil
	}
	s := t.swarmLocked(id, table)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.table.Equal(table) {
		return nil // cut differently: of no use to the others
	}
	mem := s.memberLocked(p)
	mem.held, mem.complete = held, m.Complete
	return nil
}

// leave ends p's interest; what it holds stays known.
func (s *swarm) leave(p *peer) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[p.name]
	if !ok || m.p != p {
		return
	}
	m.interested, m.whole, m.wanted = false, false, nil
	// If p comes back, it knows nothing of what it was told.
	m.toldWhole = false
	m.listed = time.Time{}
	for _, set := range []task.Set{m.pending, m.offered, m.told} {
		clear(set)
	}
	m.endFeeds()
	for name, parent := range m.links {
		if !parent.interested {
			delete(m.links, name)
		}
	}
	s.sharesLocked(p.zone)
	if m.held.Len() == 0 && !m.complete {
		s.dropMemberLocked(m)
	}
	if s.reapLocked() {
		delete(s.t.swarms, s.id)
	}
}

// finished notes pieces that p holds now.
func (s *swarm) finished(p *peer, f *apiv1.Finished) {
	s.mu.Lock()
	m, ok := s.members[p.name]
	if !ok || m.p != p {
		s.mu.Unlock()
		return
	}
	n := s.table.Count()
	for _, i := range f.Pieces {
		if int(i) < n {
			m.held.Add(int(i))
			m.pending.Remove(int(i))
		}
	}
	if f.Complete {
		m.complete = true
		m.held.AddRange(0, n)
		clear(m.pending)
	}
	m.progress, m.starved = s.t.o.Now(), false
	s.mu.Unlock()
	s.t.commandProgress(s.id, p.name)
	s.offer()
}

// dropped notes pieces that p no longer holds.
func (s *swarm) dropped(p *peer, d *apiv1.Dropped) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[p.name]
	if !ok || m.p != p {
		return
	}
	m.complete = false
	if len(d.Pieces) == 0 {
		clear(m.held)
	}
	for _, i := range d.Pieces {
		m.held.Remove(int(i))
		m.offered.Remove(int(i)) // so that it may be offered again
	}
	if m.held.Len() == 0 && !m.interested {
		s.dropMemberLocked(m)
		if s.reapLocked() {
			delete(s.t.swarms, s.id)
		}
	}
}

// starved gives p more parents: holders of the pieces it lacks.
func (t *Tracker) starved(p *peer, st *apiv1.Starved) error {
	id, err := task.ParseID(st.TaskId)
	if err != nil {
		return err
	}
	s := t.find(id)
	if s == nil {
		return nil
	}
	t.mu.Lock()
	s.mu.Lock()
	if m, ok := s.members[p.name]; ok && m.p == p && m.interested {
		m.starved = true
		const more = 4
		added := 0
		for _, c := range s.members {
			if added < more && c != m && m.links[c.p.name] == nil && holdsAny(c.held, st.Pieces) && !s.describeLocked(c).Quarantined {
				s.joinLocked(m, c)
				added++
			}
		}
		p.out.mark(id, newParents|newDigests)
	}
	s.mu.Unlock()
	t.mu.Unlock()
	s.offer()
	return nil
}

func holdsAny(held task.Set, pieces []uint32) bool {
	for _, i := range pieces {
		if held.Has(int(i)) {
			return true
		}
	}
	return false
}

// Revoked tells everybody that what they have of id is not to be trusted.
func (t *Tracker) Revoked(id task.ID, reason error) {
	t.o.Log.Error("a task is revoked", "task", id, "error", reason)
	t.broadcast(id, true, &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Revoked{Revoked: &apiv1.Revoked{
		TaskId: string(id), Reason: reason.Error(),
	}}})
}

// Failed tells those who wait for id that the origin failed.
func (t *Tracker) Failed(id task.ID, reason error) {
	t.o.Log.Warn("a task failed at the origin", "task", id, "error", reason)
	t.broadcast(id, false, failure(0, string(id), reason))
}

// broadcast sends msg to the interested members of id; revoke forgets what all
// members hold.
func (t *Tracker) broadcast(id task.ID, revoke bool, msg *apiv1.SupernodeMessage) {
	s := t.find(id)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		if revoke {
			m.complete = false
			m.toldWhole = false
			for _, set := range []task.Set{m.held, m.offered, m.pending, m.told} {
				clear(set)
			}
		}
		if revoke || m.interested && !m.complete {
			m.p.out.send(msg)
		}
	}
	if revoke {
		clear(s.published)
		s.complete = false
	}
}

// compose writes the messages for news about a task. If the parents are not to
// be sent yet, wait says how long not.
func (t *Tracker) compose(p *peer, id task.ID, n news) (out []*apiv1.SupernodeMessage, wait time.Duration) {
	s := t.find(id)
	if s == nil {
		return nil, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[p.name]
	if !ok || m.p != p || !m.interested {
		return nil, 0
	}
	if n&newDigests != 0 {
		out = s.digestsLocked(out, m)
	}
	if n&newParents != 0 {
		if wait = listEvery - t.o.Now().Sub(m.listed); wait <= 0 || len(m.links) <= fewParents {
			return append(out, s.parentsLocked(m)), 0
		}
	}
	return out, max(wait, 0)
}

// While peers come by the hundred, one that has some parents gets news of more
// at most every listEvery.
const (
	listEvery  = 50 * time.Millisecond
	fewParents = 4
)

// maxRun bounds the digests in one message, in bytes: a table of a million
// pieces has more than gRPC lets through.
const maxRun = task.MaxUniformPieces * len(task.Digest{})

// digestsLocked appends the digests that m was not told yet.
func (s *swarm) digestsLocked(out []*apiv1.SupernodeMessage, m *member) []*apiv1.SupernodeMessage {
	if s.obj == nil {
		return out
	}
	var run *apiv1.Digests
	next := -1
	for w := range s.published {
		fresh := task.Set{s.published[w] &^ m.told[w]}
		for b := range fresh.All() {
			i := w*64 + b
			d, ok := s.obj.Digest(i)
			if !ok {
				continue
			}
			if i != next || len(run.Digests) >= maxRun {
				run = &apiv1.Digests{TaskId: string(s.id), First: uint32(i)} // #nosec G115 -- a piece number
				out = append(out, &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Digests{Digests: run}})
			}
			run.Digests = append(run.Digests, d[:]...)
			m.told.Add(i)
			next = i + 1
		}
	}
	if !s.complete || m.toldWhole {
		return out
	}
	m.toldWhole = true
	if run == nil {
		run = &apiv1.Digests{TaskId: string(s.id)}
		out = append(out, &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Digests{Digests: run}})
	}
	run.Whole = true
	return out
}

// parentsLocked lists m's parents with tickets.
func (s *swarm) parentsLocked(m *member) *apiv1.SupernodeMessage {
	now := s.t.o.Now()
	m.listed = now
	permit := func(parent string, key ticket.Key) string {
		return key.Issue(ticket.Ticket{Task: s.id, Parent: parent, Holder: m.p.name, Expires: now.Add(s.t.o.TicketTTL)})
	}
	list := &apiv1.Parents{
		TaskId:    string(s.id),
		ShareSlot: uint32(m.share.Slot), ShareOf: uint32(m.share.Of), // #nosec G115 -- at most the number of peers
		Parents: []*apiv1.Parent{{Name: s.t.o.Name, Address: m.p.seed, Ticket: permit(s.t.o.Name, s.t.key), Seed: true}},
	}
	for _, c := range m.links {
		list.Parents = append(list.Parents, &apiv1.Parent{
			Name: c.p.name, Address: c.p.address, Ticket: permit(c.p.name, c.p.key),
			Foreign: m.p.zone != "" && c.p.zone != m.p.zone,
		})
	}
	sort.Slice(list.Parents, func(i, j int) bool { return list.Parents[i].Name < list.Parents[j].Name })
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Parents{Parents: list}}
}

func sortMembers(members []*member) {
	sort.Slice(members, func(i, j int) bool { return members[i].order < members[j].order })
}
