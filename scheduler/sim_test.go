package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// A swarm in simulated time. Node 0 is the supernode. Transfers share the
// links they cross as TCP flows do, max-min fairly; messages take msgDelay.
// Every decision is made by the package's functions, and the rest does what
// the engine and the tracker do around them, as simply as possible.

const (
	msgDelay   = 0.005 // s, a notice from one node to another, batching included
	rtt        = 0.002 // s, from request to first byte
	simWindow  = 2     // pending offers a peer
	simParents = 16
	patience   = 2 // s without progress until a peer is stalled or starved
)

// simConfig describes a swarm. Rates are in bytes per second.
type simConfig struct {
	pieces    int
	pieceSize float64
	silent    bool    // the supernode's piece server answers no request
	origin    float64 // rate at which the supernode gets content; 0: has it all
	link      float64 // of every node
	nodes     []simNode
	window    int // in-order pieces after the first one missing
	seed      uint64
	limit     float64 // s, when to give up
}

// simNode describes one peer.
type simNode struct {
	zone, rack string
	joins      float64 // s
	leaves     float64 // s; 0: stays
	up         float64 // bytes/s; 0: link
	hung       bool    // accepts requests and never answers
	seedOnly   bool    // cannot reach other peers
	quarantine bool    // known to be bad from the start: nobody's parent
	holdsAll   bool    // joins with the whole task
}

type simPeer struct {
	simNode
	id            int
	name          string
	up, down      float64
	in, gone      bool
	held, known   task.Set
	parents       []*simLink
	flows         []*simFlow
	pending       task.Set // supernode's view
	reported      task.Set // supernode's view of held
	progress      float64  // when it last gained a piece
	done          float64
	dirty         bool
	share         Share
	cursor        int // first piece not held
	hash          uint64
	foreign, seed int // pieces received from other zones, from the supernode
	sent          float64
}

type simLink struct {
	from     *simPeer
	has      task.Set
	index    int // among the peer's parents
	inFlight int
	rate     float64
	paused   float64 // until
}

type simFlow struct {
	from, to      *simPeer
	link          *simLink
	piece         int
	left, rate    float64
	start         float64
	moving, stuck bool
	ended         bool
}

type simEvent struct {
	at  float64
	seq int
	do  func()
}

type sim struct {
	simConfig
	t         testing.TB
	now       float64
	seq       int
	queue     []simEvent // latest first
	peers     []*simPeer // 0 is the supernode
	flows     []*simFlow
	available task.Set
	fetched   int
	seedDirty bool
	changed   bool // the flows, since their rates were set
	doubled   int  // duplicate requests
	imports   map[string]int
	whole     task.Set
	parents   []Parent   // of the last snapshot, reused
	fetching  []Fetching // the same
}

func newSim(t testing.TB, c simConfig) *sim {
	s := &sim{simConfig: c, t: t, imports: map[string]int{}, whole: task.FullSet(c.pieces)}
	s.available = task.NewSet(c.pieces)
	super := &simPeer{name: "supernode", up: c.link, down: c.link, in: true, held: s.available}
	super.hung = c.silent
	s.peers = append(s.peers, super)
	for i, n := range c.nodes {
		up := n.up
		if up == 0 {
			up = c.link
		}
		p := &simPeer{simNode: n, id: i + 1, name: fmt.Sprintf("node-%d-%d", c.seed, i), up: up, down: c.link}
		p.hash = hashStrings(p.name)
		p.held, p.known = task.NewSet(c.pieces), task.NewSet(c.pieces)
		p.pending, p.reported = task.NewSet(c.pieces), task.NewSet(c.pieces)
		s.peers = append(s.peers, p)
		s.at(n.joins, func() { s.join(p) })
		if n.leaves > 0 {
			s.at(n.leaves, func() { s.leave(p) })
		}
	}
	for i := range c.pieces {
		if c.origin == 0 {
			s.arrive(i)
			continue
		}
		s.at(float64(i+1)*c.pieceSize/c.origin, func() { s.arrive(i) })
	}
	return s
}

func (s *sim) at(when float64, do func()) {
	s.seq++
	e := simEvent{at: when, seq: s.seq, do: do}
	i, _ := slices.BinarySearchFunc(s.queue, e, func(a, b simEvent) int {
		return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(b.seq, a.seq))
	})
	s.queue = slices.Insert(s.queue, i, e)
}

func (s *sim) after(d float64, do func()) { s.at(s.now+d, do) }

// arrive gives the supernode a piece from the origin.
func (s *sim) arrive(piece int) {
	s.available.Add(piece)
	s.fetched++
	s.seedDirty = true
	for _, p := range s.peers[1:] {
		s.after(msgDelay, func() { p.known.Add(piece); p.dirty = true })
	}
}

func (s *sim) join(p *simPeer) {
	p.in, p.progress = true, s.now
	if p.holdsAll {
		p.held.AddRange(0, s.pieces)
		p.reported.AddRange(0, s.pieces)
	}
	s.connect(p, s.peers[0])
	s.regroup()
	s.every(0.5, func() bool { return s.check(p) })
	p.dirty, s.seedDirty = true, true
}

// regroup gives every peer its parents and its share anew, as the tracker does
// when peers come and go.
func (s *sim) regroup() {
	zones := map[string][]string{}
	var all []Peer
	byName := map[string]*simPeer{}
	for _, p := range s.peers[1:] {
		if p.in && !p.gone {
			byName[p.name] = p
			zones[p.zone] = append(zones[p.zone], p.name)
			n := p.held.Len()
			all = append(all, Peer{Name: p.name, Zone: p.zone, Rack: p.rack, Held: n, Complete: n == s.pieces, Quarantined: p.quarantine})
		}
	}
	for i, self := range all {
		p := byName[self.Name]
		p.share = Share{}
		if p.zone != "" {
			p.share = ZoneShare(self.Name, zones[p.zone])
		}
		if p.seedOnly {
			continue
		}
		for _, name := range Parents("sha256:x", all[i], all, simParents) {
			s.connect(p, byName[name])
		}
		p.dirty = true
	}
}

func (s *sim) connect(p, from *simPeer) {
	for _, l := range p.parents {
		if l.from == from {
			return
		}
	}
	l := &simLink{from: from, has: task.NewSet(s.pieces)}
	p.parents = append(p.parents, l)
	if from.id != 0 {
		s.after(msgDelay, func() {
			copy(l.has, from.held)
			p.dirty = true
		})
	}
}

func (s *sim) leave(p *simPeer) {
	p.gone = true
	s.seedDirty = true
	for _, f := range s.flows {
		if f.from == p || f.to == p {
			s.end(f)
		}
	}
	for _, q := range s.peers[1:] {
		q.parents = slices.DeleteFunc(q.parents, func(l *simLink) bool { return l.from == p })
	}
	s.regroup()
}

// every calls do at intervals until it returns false.
func (s *sim) every(d float64, do func() bool) {
	s.after(d, func() {
		if do() {
			s.every(d, do)
		}
	})
}

// check is the peer's timer: requests that are too late, and progress.
func (s *sim) check(p *simPeer) bool {
	if p.gone || p.done > 0 {
		return false
	}
	p.dirty = true
	if s.now-p.progress > patience {
		s.seedDirty = true
	}
	return true
}

// pump lets a peer start requests.
func (s *sim) pump(p *simPeer) {
	p.dirty = false
	if !p.in || p.gone || p.done > 0 {
		return
	}
	d := s.snapshot(p)
	for _, f := range Next(d) {
		if err := checkFetch(d, f); err != nil {
			s.t.Fatal(err)
		}
		l := p.parents[f.Parent]
		if f.Duplicate {
			s.doubled++
		}
		fl := &simFlow{from: l.from, to: p, link: l, piece: f.Piece, left: s.pieceSize, start: s.now}
		l.inFlight++
		p.flows = append(p.flows, fl)
		s.flows = append(s.flows, fl)
		if !l.from.hung {
			s.after(rtt, func() { fl.moving, s.changed = true, true })
		}
		wait := Deadline(int64(s.pieceSize), l.rate, l.inFlight)
		s.after(wait.Seconds(), func() {
			fl.stuck = !fl.ended
			p.dirty = true
		})
		s.after(3*wait.Seconds(), func() {
			if !fl.ended { // give up on it, and on the parent for a while
				l.paused = s.now + 10
				s.end(fl)
				s.after(10, func() { p.dirty = true })
			}
		})
	}
}

func (s *sim) snapshot(p *simPeer) Download {
	for p.held.Has(p.cursor) {
		p.cursor++
	}
	d := Download{
		Wanted: s.whole, Held: p.held, Known: p.known, Window: s.window, Cursors: []int{p.cursor},
		Parents: s.parents[:0], Fetching: s.fetching[:0], Share: p.share, Starved: s.now-p.progress > patience,
		Seed: p.hash, MaxInFlight: Slots(len(p.parents)) * len(p.parents),
	}
	for i, l := range p.parents {
		l.index = i
		d.Parents = append(d.Parents, Parent{
			Has: l.has, InFlight: l.inFlight, Slots: Slots(len(p.parents)), Rate: l.rate, Seed: l.from.id == 0,
			Foreign: l.from.id != 0 && l.from.zone != p.zone, Paused: l.paused > s.now,
		})
	}
	for _, f := range p.flows {
		d.Fetching = append(d.Fetching, Fetching{Piece: f.piece, Parent: f.link.index, Stuck: f.stuck})
	}
	s.parents, s.fetching = d.Parents, d.Fetching
	return d
}

// seedOffers lets the supernode make offers.
func (s *sim) seedOffers() {
	s.seedDirty = false
	view := Seeder{Available: s.available, Complete: s.fetched == s.pieces}
	var who []*simPeer
	for _, p := range s.peers[1:] {
		if !p.in || p.gone {
			continue
		}
		idle := s.now-p.progress > patience
		view.Peers = append(view.Peers, SeedPeer{
			Name: p.name, Zone: p.zone, Held: p.reported, Pending: p.pending, Whole: true,
			Stalled: idle && p.pending.Len() > 0, Starved: idle && p.pending.Len() == 0,
		})
		who = append(who, p)
	}
	for _, o := range Offers(view, simWindow) {
		p := who[o.Peer]
		if p.pending.Has(o.Piece) || p.reported.Has(o.Piece) {
			s.t.Fatalf("piece %d offered to %s, which has it", o.Piece, p.name)
		}
		p.pending.Add(o.Piece)
		if p.pending.Len() > simWindow {
			s.t.Fatalf("%d offers pending at %s", p.pending.Len(), p.name)
		}
		s.after(msgDelay, func() { p.parents[0].has.Add(o.Piece); p.dirty = true })
	}
}

// end takes a flow out of all lists.
func (s *sim) end(f *simFlow) {
	if f.ended {
		return
	}
	f.ended, s.changed = true, true
	f.link.inFlight--
	f.to.dirty = true
	f.to.flows = slices.DeleteFunc(f.to.flows, func(g *simFlow) bool { return g == f })
}

func (s *sim) receive(f *simFlow) {
	l, p := f.link, f.to
	rate := s.pieceSize / (s.now - f.start) * float64(l.inFlight)
	if l.rate == 0 {
		l.rate = rate
	}
	l.rate += 0.2 * (rate - l.rate)
	s.end(f)
	switch {
	case f.from.id == 0:
		p.seed++
		s.imports[p.zone]++ // the supernode stands in no zone: every copy is an import
	case f.from.zone != p.zone:
		p.foreign++
		s.imports[p.zone]++
	}
	if p.held.Has(f.piece) {
		return
	}
	p.held.Add(f.piece)
	p.progress = s.now
	if p.held.Len() == s.pieces {
		p.done = s.now
	}
	for _, g := range slices.Clone(p.flows) {
		if g.piece == f.piece {
			s.end(g) // the slower duplicate
		}
	}
	s.announce(p, f.piece)
}

func (s *sim) announce(p *simPeer, piece int) {
	s.after(msgDelay, func() {
		p.reported.Add(piece)
		p.pending.Remove(piece)
		s.seedDirty = true
		for _, q := range s.peers[1:] {
			for _, l := range q.parents {
				if l.from == p {
					l.has.Add(piece)
					q.dirty = true
				}
			}
		}
	})
}

// run advances until all peers that stay are done, and returns the time.
func (s *sim) run() (time.Duration, error) {
	for s.now < s.limit {
		if s.allDone() {
			return time.Duration(s.now * float64(time.Second)), nil
		}
		s.step()
	}
	for _, p := range s.peers[1:] {
		if !p.gone && p.done == 0 {
			return 0, fmt.Errorf("%s has %d of %d pieces after %.0f s", p.name, p.held.Len(), s.pieces, s.now)
		}
	}
	return 0, fmt.Errorf("not done after %.0f s", s.now)
}

func (s *sim) allDone() bool {
	for _, p := range s.peers[1:] {
		if !p.gone && !p.holdsAll && p.done == 0 {
			return false
		}
	}
	return true
}

func (s *sim) step() {
	if s.changed {
		s.flows = slices.DeleteFunc(s.flows, func(f *simFlow) bool { return f.ended })
		s.shareLinks()
		s.changed = false
	}
	next := s.limit
	if n := len(s.queue); n > 0 {
		next = min(next, s.queue[n-1].at)
	}
	for _, f := range s.flows {
		if f.rate > 0 {
			next = min(next, s.now+f.left/f.rate)
		}
	}
	dt := next - s.now
	s.now = next
	var finished []*simFlow
	for _, f := range s.flows {
		f.left -= f.rate * dt
		f.from.sent += f.rate * dt
		if f.left < 1e-3 && f.moving {
			finished = append(finished, f)
		}
	}
	for _, f := range finished {
		if !f.ended {
			s.receive(f)
		}
	}
	for n := len(s.queue); n > 0 && s.queue[n-1].at <= s.now; n = len(s.queue) {
		e := s.queue[n-1]
		s.queue = s.queue[:n-1]
		e.do()
	}
	if s.seedDirty {
		s.seedOffers()
	}
	for _, p := range s.peers[1:] {
		if p.dirty {
			s.pump(p)
		}
	}
}
