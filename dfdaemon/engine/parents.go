package engine

import (
	"context"
	"errors"
	"io"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/scheduler"
)

// parent is a peer or the supernode, as a source of one task.
type parent struct {
	name    string
	at      pieces.Parent
	seed    bool
	foreign bool

	has         task.Set
	inFlight    int
	rate        float64 // bytes per second, of late; 0 unknown
	failures    int     // in a row
	pausedUntil time.Time
	stop        context.CancelFunc // ends its feed
}

// setParents replaces the list of parents.
func (d *download) setParents(m *apiv1.Parents) {
	d.mu.Lock()
	t := d.t
	d.mu.Unlock()
	if t == nil {
		return
	}
	d.share = scheduler.Share{Slot: int(m.ShareSlot), Of: int(m.ShareOf)}
	listed := map[string]bool{}
	for _, x := range m.Parents {
		if d.e.isQuarantined(x.Name) {
			continue
		}
		listed[x.Name] = true
		at := pieces.Parent{Address: x.Address, Ticket: x.Ticket}
		p := d.parents[x.Name]
		switch {
		case p == nil:
			p = &parent{name: x.Name, at: at, seed: x.Seed, foreign: x.Foreign, has: task.NewSet(t.Table().Count())}
			d.parents[x.Name] = p
			d.openFeed(p, t.Table().Count())
		case p.at.Address != at.Address:
			p.stop()
			p.at, p.failures = at, 0
			clear(p.has)
			d.openFeed(p, t.Table().Count())
		default:
			p.at = at // a new ticket serves from the next request on
		}
	}
	for name := range d.parents {
		if !listed[name] {
			d.dropParent(name)
		}
	}
}

func (e *Engine) isQuarantined(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	until, ok := e.quarantined[name]
	if ok && e.o.Now().After(until) {
		delete(e.quarantined, name)
		ok = false
	}
	return ok
}

// dropParent ends all use of a parent.
func (d *download) dropParent(name string) {
	p := d.parents[name]
	if p == nil {
		return
	}
	p.stop()
	delete(d.parents, name)
	for f := range d.fetches {
		if f.from == p {
			f.cancel()
		}
	}
}

// openFeed follows which pieces p offers.
func (d *download) openFeed(p *parent, count int) {
	ctx, stop := context.WithCancel(d.ctx)
	p.stop = stop
	d.readFeed(ctx, p, count, 0)
}

// readFeed reads p's feed, after a pause if it has failed before.
func (d *download) readFeed(ctx context.Context, p *parent, count, failures int) {
	at := p.at
	d.wg.Go(func() {
		if failures > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(50*time.Millisecond<<min(failures, 6), 2*time.Second)):
			}
		}
		heard := false
		err := d.e.o.Pieces.Haves(ctx, at, d.id, count, func(first, n int) {
			heard = true
			d.postQuietly(func() { d.offered(p, first, first+n) })
		})
		if ctx.Err() != nil {
			return
		}
		d.post(func() {
			if ctx.Err() != nil {
				return
			}
			if heard {
				failures = 0
			}
			d.e.o.Log.Debug("feed of a parent ended", "task", d.id.Short(), "parent", p.name, "error", err)
			d.readFeed(ctx, p, count, failures+1)
		})
	})
}

// offered notes pieces that p offers.
func (d *download) offered(p *parent, first, end int) {
	p.has.AddRange(first, end)
	d.mu.Lock()
	t := d.t
	d.mu.Unlock()
	for i := first; i < end && !d.news; i++ {
		d.news = !d.busy.Has(i) && (t == nil || !t.Has(i))
	}
}

// fetch is one piece being fetched from a parent.
type fetch struct {
	piece    int
	from     *parent
	started  time.Time
	deadline time.Time
	stuck    bool
	cancel   context.CancelFunc
}

// start fetches a piece from p.
func (d *download) start(ctx context.Context, t *piecestore.Task, piece int, p *parent, urgent bool) {
	ctx, cancel := context.WithCancel(ctx)
	_, n := t.Table().Piece(piece)
	now := d.e.o.Now()
	p.inFlight++
	f := &fetch{piece: piece, from: p, started: now, cancel: cancel}
	f.deadline = now.Add(scheduler.Deadline(n, p.rate, p.inFlight))
	if urgent && p.rate > 0 {
		// Somebody waits for this very piece: a second parent is asked early.
		hedge := now.Add(hedgeAfter + time.Duration(2*float64(n)/p.rate*float64(time.Second)))
		if hedge.Before(f.deadline) {
			f.deadline = hedge
		}
	}
	d.fetches[f] = struct{}{}
	d.busy.Add(piece)
	prio := d.priority(piece)
	at, want := p.at, d.digests[piece]
	d.wg.Go(func() {
		err := d.receive(ctx, t, at, piece, n, want, prio)
		cancel()
		d.post(func() { d.fetched(t, f, n, err) })
	})
}

// priority is that of the most urgent reader of a piece, or of the latest
// request if nobody reads it now.
func (d *download) priority(piece int) pieces.Priority {
	d.mu.Lock()
	defer d.mu.Unlock()
	prio, read := d.r.Priority, false
	for r := range d.readers {
		if r.next <= piece && piece < r.end && (!read || r.priority < prio) {
			prio, read = r.priority, true
		}
	}
	return prio
}

// receive fetches one piece into the store.
func (d *download) receive(ctx context.Context, t *piecestore.Task, at pieces.Parent, piece int, n int64, want task.Digest, prio pieces.Priority) error {
	body, err := d.e.o.Pieces.Piece(ctx, at, d.id, piece, n, prio, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = t.WritePiece(ctx, piece, &want, body)
	return err
}

// hedgeAfter is how long a piece that a reader of a range waits for may take,
// beyond twice its usual time, before another parent is asked for it too.
const hedgeAfter = 20 * time.Millisecond

// leaveSlow keeps away for a while from parents that are much slower than the
// others.
func (d *download) leaveSlow(now time.Time) {
	if now.Sub(d.compared) < compareEvery {
		return
	}
	d.compared = now
	parents := make([]*parent, 0, len(d.parents))
	rates := make([]float64, 0, len(d.parents))
	for _, p := range d.parents {
		if !p.seed {
			parents, rates = append(parents, p), append(rates, p.rate)
		}
	}
	for _, i := range scheduler.SlowParents(rates) {
		p := parents[i]
		d.e.o.Log.Debug("leaving a slow parent alone", "task", d.id.Short(), "parent", p.name, "bytes_per_second", p.rate)
		p.pausedUntil, p.rate = now.Add(sulk), 0 // a fresh start afterwards
	}
}

// compareEvery is how often parents' speeds are compared.
const compareEvery = time.Second

// A fetch that takes patience times its deadline is ended, and its parent left
// alone for sulk.
const (
	patience = 3
	sulk     = 10 * time.Second
)

// markStuck notes the fetches that take too long, and ends those that take far
// too long.
func (d *download) markStuck(ctx context.Context, now time.Time) {
	up, _ := d.e.o.Supernode.Connected()
	for f := range d.fetches {
		if !now.After(f.deadline) {
			continue
		}
		f.stuck = true
		if f.from.seed && up {
			continue // it has the piece, or will have; nobody else may
		}
		if now.Sub(f.started) > patience*f.deadline.Sub(f.started) && ctx.Err() == nil {
			f.from.pausedUntil = now.Add(sulk)
			f.cancel()
		}
	}
}

// fetched draws the conclusions from a fetch that has ended.
func (d *download) fetched(t *piecestore.Task, f *fetch, n int64, err error) {
	if _, ok := d.fetches[f]; !ok {
		return // of an earlier table
	}
	delete(d.fetches, f)
	d.busy.Remove(f.piece)
	p, now := f.from, d.e.o.Now()
	p.inFlight--
	var bad *piecestore.DigestError
	switch {
	case err == nil:
		p.succeeded(n, now.Sub(f.started))
		d.have(f.piece, n, p)
	case t.Has(f.piece): // another copy came first
	case errors.As(err, &bad):
		d.lied(p, f.piece, bad)
	case errors.Is(err, context.Canceled):
	case errors.Is(err, pieces.ErrNotHeld) && p.seed:
		p.failed(now, err) // it fetches again what it has lost, and does not offer it twice
	case errors.Is(err, pieces.ErrNotHeld):
		p.has.Remove(f.piece)
	case errors.Is(err, pieces.ErrBusy):
		p.pausedUntil = now.Add(200 * time.Millisecond)
	case errors.Is(err, piecestore.ErrFull):
		d.fail(err)
	default:
		p.failed(now, err)
		d.e.o.Log.Debug("a piece could not be fetched", "task", d.id.Short(), "piece", f.piece, "parent", p.name, "error", err)
	}
}

// succeeded notes how fast p was.
func (p *parent) succeeded(n int64, took time.Duration) {
	rate := float64(n) / max(took.Seconds(), 1e-6) * float64(p.inFlight+1)
	if p.rate == 0 {
		p.rate = rate
	} else {
		p.rate += (rate - p.rate) / 4
	}
	p.failures = 0
}

// failed keeps away from p for a while, longer each time.
func (p *parent) failed(now time.Time, err error) {
	p.failures++
	pause := min(100*time.Millisecond<<min(p.failures-1, 6), 5*time.Second)
	if errors.Is(err, io.ErrUnexpectedEOF) && p.failures == 1 {
		pause = 0 // a connection that broke once
	}
	p.pausedUntil = now.Add(pause)
}

// have notes a piece that has come from p.
func (d *download) have(piece int, n int64, p *parent) {
	from := FromPeer
	if p.seed {
		from = FromSupernode
	}
	d.received(from, n)
	d.gained = d.e.o.Now()
	for other := range d.fetches {
		if other.piece == piece {
			other.cancel()
		}
	}
	d.report(piece)
	d.wake()
}

func (d *download) received(from From, n int64) {
	d.e.o.Received(from, n)
	d.e.mu.Lock()
	defer d.e.mu.Unlock()
	if d.e.from[d.id] == nil {
		d.e.from[d.id] = map[From]int64{}
	}
	d.e.from[d.id][from] += n
}

// lied keeps away from a parent whose bytes were wrong, and reports it.
func (d *download) lied(p *parent, piece int, bad *piecestore.DigestError) {
	d.e.o.Rejected("digest")
	d.e.o.Log.Error("a parent sent wrong bytes", "task", d.id.Short(), "piece", piece, "parent", p.name, "error", bad)
	d.e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_BadPiece{BadPiece: &apiv1.BadPiece{
		TaskId: string(d.id), Piece: uint32(piece), Parent: p.name, // #nosec G115 -- a piece number
	}}})
	if !p.seed {
		d.e.quarantine([]string{p.name})
		d.dropParent(p.name)
		return
	}
	p.failed(d.e.o.Now(), bad)
}

// stopFetches ends all fetches and forgets them.
func (d *download) stopFetches() {
	for f := range d.fetches {
		f.cancel()
		delete(d.fetches, f)
	}
	for name := range d.parents {
		d.dropParent(name)
	}
}
