package tracker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/scheduler"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// swarm is what the tracker knows of one task.
type swarm struct {
	t     *Tracker
	id    task.ID
	table task.Table

	mu        sync.Mutex
	obj       *cdn.Object // nil while nobody is interested
	published task.Set    // what the cache may serve
	complete  bool        // the cache has all of it, checked
	members   map[string]*member
	joined    uint64
}

// member is one peer in a swarm.
type member struct {
	p     *peer
	order uint64 // of joining
	cost  int    // its part of peer.announced

	held     task.Set
	complete bool

	interested bool
	whole      bool
	wanted     task.Set // of a peer that wants ranges

	links  map[string]*member // parents, which are children too if interested
	share  scheduler.Share
	listed time.Time // when the parents were sent last, with new tickets

	told      task.Set // pieces whose digests were sent
	toldWhole bool     // that the digest of the whole was checked
	offered   task.Set // what the supernode's feed shows it
	pending   task.Set // of offered, not held yet
	progress  time.Time
	starved   bool
	feeds     map[*feed]struct{}
}

// swarmLocked returns the swarm of id, made with table if it is new.
func (t *Tracker) swarmLocked(id task.ID, table task.Table) *swarm {
	s, ok := t.swarms[id]
	if !ok {
		s = &swarm{t: t, id: id, table: table, members: map[string]*member{}, published: task.NewSet(table.Count())}
		t.swarms[id] = s
	}
	return s
}

// find returns the swarm of id, nil if there is none.
func (t *Tracker) find(id task.ID) *swarm {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.swarms[id]
}

// memberLocked returns p's membership, made if it is new.
func (s *swarm) memberLocked(p *peer) *member {
	m, ok := s.members[p.name]
	if !ok || m.p != p {
		n := s.table.Count()
		s.joined++
		m = &member{
			p: p, order: s.joined, cost: n + 1, held: task.NewSet(n), links: map[string]*member{},
			told: task.NewSet(n), offered: task.NewSet(n), pending: task.NewSet(n),
			progress: s.t.o.Now(), feeds: map[*feed]struct{}{},
		}
		s.members[p.name] = m
		p.announced += m.cost
	}
	return m
}

// recutLocked makes table the swarm's. What peers announced in another one is
// forgotten: the cache's table is what everybody downloads by.
func (s *swarm) recutLocked(table task.Table) {
	if s.table.Equal(table) {
		return
	}
	s.table, s.published = table, task.NewSet(table.Count())
	for _, m := range s.members {
		s.dropMemberLocked(m)
	}
}

// remove takes p out of the swarm and reports whether nobody is left.
func (s *swarm) remove(p *peer) (empty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[p.name]
	if ok && m.p == p {
		s.dropMemberLocked(m)
	}
	return s.reapLocked()
}

func (s *swarm) dropMemberLocked(m *member) {
	delete(s.members, m.p.name)
	m.p.announced -= m.cost
	for _, other := range s.members {
		if other.links[m.p.name] == m {
			delete(other.links, m.p.name)
			other.p.out.mark(s.id, newParents)
		}
	}
	m.endFeeds()
	s.sharesLocked(m.p.zone)
}

// reapLocked gives the object back when nobody is interested, and reports
// whether the swarm is empty.
func (s *swarm) reapLocked() bool {
	interested := false
	for _, m := range s.members {
		interested = interested || m.interested
	}
	if !interested && s.obj != nil {
		obj := s.obj
		s.obj = nil
		// Not under s.mu: releasing may call back into the cache.
		s.t.wg.Go(obj.Release)
	}
	return len(s.members) == 0
}

// sharesLocked divides imports into zone among its interested members.
func (s *swarm) sharesLocked(zone string) {
	if zone == "" {
		return
	}
	var names []string
	for _, m := range s.members {
		if m.interested && m.p.zone == zone {
			names = append(names, m.p.name)
		}
	}
	slices.Sort(names)
	for slot, name := range names {
		m := s.members[name]
		// What scheduler.ZoneShare says of each, without sorting for each.
		if share := (scheduler.Share{Slot: slot, Of: len(names)}); share != m.share {
			m.share = share
			m.p.out.mark(s.id, newParents)
		}
	}
}

// describe is m as package scheduler sees it.
func (s *swarm) describeLocked(m *member) scheduler.Peer {
	_, bad := s.t.quarantine[m.p.name]
	return scheduler.Peer{
		Name: m.p.name, Zone: m.p.zone, Rack: m.p.rack, Held: m.held.Len(), Complete: m.complete,
		Quarantined: bad, Children: len(m.links),
	}
}

// linkLocked gives m parents, and makes interested ones its children. The
// caller holds Tracker.mu too.
func (s *swarm) linkLocked(m *member) {
	limit := s.t.o.MaxParents
	if len(s.members) > limit+1 {
		limit = (limit + 1) / 2 // the other half comes from those who choose m
	}
	if len(m.links) >= limit {
		return
	}
	candidates := make([]scheduler.Peer, 0, len(s.members))
	for _, c := range s.members {
		if c != m && m.links[c.p.name] == nil && (c.interested || c.held.Len() > 0 || c.complete) {
			candidates = append(candidates, s.describeLocked(c))
		}
	}
	for _, name := range scheduler.Parents(s.id, s.describeLocked(m), candidates, limit-len(m.links)) {
		s.joinLocked(m, s.members[name])
	}
	m.p.out.mark(s.id, newParents)
}

// joinLocked makes c a parent of m, and m one of c if c is still fetching. A
// peer in quarantine gets parents and is none.
func (s *swarm) joinLocked(m, c *member) {
	m.links[c.p.name] = c
	if _, bad := s.t.quarantine[m.p.name]; !bad && c.interested && !c.complete {
		c.links[m.p.name] = m
		c.p.out.mark(s.id, newParents)
	}
}

// Published tells the swarm of id that the cache has more of it.
func (t *Tracker) Published(id task.ID) {
	if s := t.find(id); s != nil {
		s.refresh()
		s.offer()
	}
}

// refresh takes over what the cache has published.
func (s *swarm) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.obj == nil {
		return
	}
	s.published, s.complete = s.obj.Published()
	for _, m := range s.members {
		if m.interested {
			m.p.out.mark(s.id, newDigests)
		}
	}
}

// offerBytes is how much the supernode has on offer at a time, over all peers:
// enough to keep a fast link with a long delay busy, little enough that a piece
// is with its first holder soon.
const offerBytes = 16 << 20

// offer makes the offers that are due.
func (s *swarm) offer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.obj == nil {
		return
	}
	members := s.wholeMembersLocked()
	if len(members) > 0 {
		for _, o := range scheduler.Offers(s.seederLocked(members), s.windowLocked(len(members))) {
			m := members[o.Peer]
			if m.pending.Len() == 0 {
				m.progress = s.t.o.Now()
			}
			m.offered.Add(o.Piece)
			m.pending.Add(o.Piece)
			m.wakeFeeds()
		}
	}
	for _, m := range s.members {
		if m.interested && !m.whole {
			s.offerAskedLocked(m)
		}
	}
}

// wholeMembersLocked returns those who want everything, in order of joining.
func (s *swarm) wholeMembersLocked() []*member {
	var members []*member
	for _, m := range s.members {
		if m.interested && m.whole && !m.complete {
			members = append(members, m)
		}
	}
	sortMembers(members)
	return members
}

func (s *swarm) windowLocked(peers int) int {
	size := s.table.PieceSize
	if size == 0 && s.table.Count() > 0 {
		size = s.table.Length / int64(s.table.Count())
	}
	return int(min(max(offerBytes/max(size, 1)/int64(peers), 2), 64))
}

func (s *swarm) seederLocked(members []*member) scheduler.Seeder {
	now := s.t.o.Now()
	seeder := scheduler.Seeder{Available: s.published, Complete: s.complete, Peers: make([]scheduler.SeedPeer, len(members))}
	for i, m := range members {
		seeder.Peers[i] = scheduler.SeedPeer{
			Name: m.p.name, Zone: m.p.zone, Held: m.held, Pending: m.pending, Whole: true,
			Stalled: m.pending.Len() > 0 && now.Sub(m.progress) > s.t.o.OfferStall,
			Starved: m.starved,
		}
	}
	return seeder
}

// offerAskedLocked shows a peer that wants ranges all that is there of them.
func (s *swarm) offerAskedLocked(m *member) {
	grew := false
	for w := range m.wanted {
		fresh := m.wanted[w] & s.published[w] &^ m.offered[w]
		grew = grew || fresh != 0
		m.offered[w] |= fresh
	}
	if grew {
		m.wakeFeeds()
	}
}

// renew sends new tickets before the old ones expire. It reports whether some
// peer has stalled, so that others should be offered what it was.
func (s *swarm) renew(now time.Time) (stalled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		stalled = stalled || m.starved || m.interested && !m.complete && now.Sub(m.progress) > s.t.o.OfferStall
		if m.interested && !m.listed.IsZero() && now.Sub(m.listed) > s.t.o.TicketTTL/2 {
			m.p.out.mark(s.id, newParents)
		}
	}
	return stalled
}

// count adds each member's task to tasks.
func (s *swarm) count(tasks map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.members {
		tasks[name]++
	}
}

// Feed is the supernode's offers to one holder, as package pieces sends them.
func (t *Tracker) Feed(id task.ID, holder string) (pieces.Feed, error) {
	if s := t.find(id); s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if m, ok := s.members[holder]; ok && m.interested {
			f := &feed{s: s, m: m, changed: make(chan struct{}, 1)}
			m.feeds[f] = struct{}{}
			return f, nil
		}
	}
	return nil, pieces.ErrNotHeld
}

// Ready waits until piece i of id may be served.
func (t *Tracker) Ready(ctx context.Context, id task.ID, i int) error {
	s := t.find(id)
	if s == nil {
		return pieces.ErrNotHeld
	}
	s.mu.Lock()
	if s.published.Has(i) {
		s.mu.Unlock()
		return nil
	}
	obj := s.obj
	s.mu.Unlock()
	if obj == nil || ctx.Err() != nil {
		return pieces.ErrNotHeld
	}
	return obj.WaitPublished(ctx, i)
}

// feed is one open view of what a member is offered.
type feed struct {
	s       *swarm
	m       *member
	changed chan struct{}
}

func (f *feed) Set() task.Set {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.m.offered.Clone()
}

func (f *feed) Changed() <-chan struct{} { return f.changed }

func (f *feed) Close() {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	delete(f.m.feeds, f)
}

func (f *feed) wake() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// endFeeds ends what shows m's offers: when its peer takes part again, it does
// so as another member.
func (m *member) endFeeds() {
	for f := range m.feeds {
		close(f.changed)
		delete(m.feeds, f)
	}
}

func (m *member) wakeFeeds() {
	for f := range m.feeds {
		f.wake()
	}
}
