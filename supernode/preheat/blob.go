package preheat

import (
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// blob is one content of a running job.
type blob struct {
	i   int
	id  task.ID // "" for a file until the cache has answered
	url string
	row Blob // without Peers
	sub *subscription
	obj Object // nil until the cache has answered

	slot    bool // it has one of the job's slots
	asking  bool // the cache is being asked
	tries   int
	retryAt time.Time // when to ask again

	peers    []*peer // nil until they were told
	commands []uint64
	lookAt   time.Time // when to look at the peers even without news

	stale bool   // the rows of the peers are
	rows  []Peer // as published
}

// peer is one node that is to hold a blob.
type peer struct {
	row     Peer
	command uint64
	tries   int
	away    time.Time // until when a node that left may come back
	settle  time.Time // until when a node that says it is done may announce the rest
}

func newBlob(i int, c content, s subject, j *job) *blob {
	b := &blob{i: i, id: c.id, url: s.url, row: Blob{TaskID: c.id, Size: c.size, State: Pending}, stale: true}
	if s.image != nil {
		b.url = s.image.blobURL(c.id)
	}
	if _, ok := c.id.Digest(); ok {
		b.row.Digest = string(c.id)
	}
	for _, name := range j.targets {
		b.rows = append(b.rows, Peer{Name: name, State: Pending})
	}
	return b
}

// settle makes s the blob's final state at the supernode, unless it has one.
func (b *blob) settle(s State, reason string) {
	if !b.row.State.Final() {
		b.row.State, b.row.Error = s, reason
		b.retryAt = time.Time{}
		b.stale = true
		if b.peers == nil && s != Succeeded {
			for _, row := range b.rows {
				b.peers = append(b.peers, &peer{row: row})
			}
		}
	}
}

func (b *blob) newPeers(names []string) []*peer {
	b.peers = make([]*peer, len(names))
	for i, name := range names {
		b.peers[i] = &peer{row: Peer{Name: name, State: Running}}
	}
	return b.peers
}

// open returns the peers that have not come to an end.
func (b *blob) open() []*peer {
	var open []*peer
	for _, p := range b.peers {
		if !p.row.State.Final() {
			open = append(open, p)
		}
	}
	return open
}

// due reports that something is to be done about b now.
func (b *blob) due(now time.Time) bool {
	return !b.retryAt.IsZero() && !now.Before(b.retryAt) || !b.lookAt.IsZero() && !now.Before(b.lookAt)
}

// shown returns the row with those of the peers.
func (b *blob) shown() Blob {
	if b.stale && b.peers != nil {
		rows := make([]Peer, len(b.peers))
		for i, p := range b.peers {
			rows[i] = p.row
		}
		b.rows = rows
	}
	b.stale = false
	out := b.row
	out.Peers = b.rows
	return out
}

func (p *peer) end(s State, reason string) {
	p.row.State = s
	if reason != "" {
		p.row.Error = reason
	}
}

// order tells peers to hold b.
func (r *run) order(b *blob, peers []*peer) {
	if len(peers) == 0 || r.ctx.Err() != nil {
		return
	}
	src := wire.Source{ID: b.id, URL: origin.RedactURL(b.url)} // and no credential: the swarm has what they need
	if table := b.obj.Table(); !table.Equal(task.Uniform(table.Length)) {
		src.Table = &table
	}
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = p.row.Name
	}
	id := r.m.o.Tracker.Order(names, src, apiv1.Priority_PRIORITY_PREHEAT, func() { r.marks.add(b.i) })
	b.commands = append(b.commands, id)
	for _, p := range peers {
		p.command, p.settle, p.away = id, time.Time{}, time.Time{}
		p.tries++
	}
}

// forget ends the commands for b; nodes that are still at it stop.
func (r *run) forget(b *blob) {
	for _, id := range b.commands {
		r.m.o.Tracker.Forget(id)
	}
	b.commands = nil
}

// maxOrders is how often one node is told to hold one blob.
const maxOrders = 5

// lookAtPeers brings the rows of b's open peers up to date. With last set
// nothing is ordered again.
func (r *run) lookAtPeers(b *blob, last bool) {
	now := time.Now()
	outcomes := map[uint64]map[string]tracker.Outcome{}
	for _, id := range b.commands {
		outcomes[id] = r.m.o.Tracker.Outcomes(id)
	}
	var connected map[string]bool // asked for when needed
	var again []*peer
	b.lookAt = time.Time{}
	for _, p := range b.open() {
		p.row.HeldBytes = r.m.o.Tracker.HeldBytes(b.id, p.row.Name)
		o := outcomes[p.command][p.row.Name]
		switch {
		case o.Done:
			r.announced(b, p, now)
		case o.Error != "" && !last:
			if connected == nil {
				connected = r.connected()
			}
			if r.lost(b, p, o.Error, connected[p.row.Name], now) {
				again = append(again, p)
			}
		}
	}
	if !last {
		r.order(b, again)
	}
}

// announced ends p if it has announced all of b.
func (r *run) announced(b *blob, p *peer, now time.Time) {
	switch {
	case p.row.HeldBytes >= b.row.Size:
		p.row.Error = ""
		p.end(Succeeded, "")
	case p.settle.IsZero():
		p.settle = now.Add(settle)
		b.wakeAt(p.settle)
	case now.Before(p.settle):
		b.wakeAt(p.settle)
	default:
		p.end(Failed, "the node says that it is done, but has not announced all of the content")
	}
}

// lost handles the failure of p and reports whether to tell it again: a node
// that came back has forgotten the command, and a failure may pass.
func (r *run) lost(b *blob, p *peer, reason string, connected bool, now time.Time) (again bool) {
	p.row.Error = reason
	switch {
	case connected && (p.tries < 2 || !p.away.IsZero() && p.tries < maxOrders):
		return true
	case connected:
		p.end(Failed, "")
		return false
	case p.away.IsZero():
		p.away = now.Add(r.m.o.Reconnect)
	case !now.Before(p.away):
		p.end(Failed, "")
		return false
	}
	b.wakeAt(now.Add(min(lookAgain, p.away.Sub(now))))
	return false
}

func (b *blob) wakeAt(at time.Time) {
	if b.lookAt.IsZero() || at.Before(b.lookAt) {
		b.lookAt = at
	}
}

func (r *run) connected() map[string]bool {
	set := map[string]bool{}
	for _, p := range r.m.o.Tracker.Peers() {
		set[p.Name] = true
	}
	return set
}
