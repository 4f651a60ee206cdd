package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/scheduler"
)

// work starts what can be started now.
func (d *download) work(ctx context.Context) {
	d.mu.Lock()
	t, whole := d.t, d.whole
	d.mu.Unlock()
	if t == nil || !isClosed(d.ready) {
		d.considerOrigin(ctx, nil)
		return
	}
	if whole && d.following != t && followable(t) {
		d.following = t
		d.wg.Go(func() { d.follow(ctx, t) })
	}
	now := d.e.o.Now()
	d.markStuck(ctx, now)
	d.leaveSlow(now)
	snapshot, parents := d.snapshot(t, now)
	for _, f := range scheduler.Next(snapshot) {
		d.start(ctx, t, f.Piece, parents[f.Parent], slices.Contains(snapshot.Urgent, f.Piece))
	}
	d.considerHunger(snapshot, now)
	d.considerOrigin(ctx, t)
}

// followable reports whether the digest of the whole is to be computed now. What
// the supernode has checked as a whole, and vouches for piece by piece, can be
// checked again when all of it is there. Otherwise it is checked as it comes: its
// end waits for the result.
func followable(t *piecestore.Task) bool {
	return t.HeldCount() == t.Table().Count() || t.Proven().Len() < t.HeldCount()
}

// snapshot describes the download to package scheduler; parents are in the
// order of its indexes.
func (d *download) snapshot(t *piecestore.Task, now time.Time) (scheduler.Download, []*parent) {
	slots := scheduler.Slots(len(d.parents))
	s := scheduler.Download{
		Held: t.Held(), Known: d.known, Share: d.share, Seed: d.e.seed, MaxInFlight: slots * len(d.parents),
		Starved: now.Sub(d.gained) > starvedAfter,
	}
	index := map[*parent]int{}
	parents := make([]*parent, 0, len(d.parents))
	for _, p := range d.parents {
		index[p] = len(parents)
		parents = append(parents, p)
		s.Parents = append(s.Parents, scheduler.Parent{
			Name: p.name, Has: p.has, InFlight: p.inFlight, Slots: slots, Rate: p.rate,
			Foreign: p.foreign, Seed: p.seed, Paused: now.Before(p.pausedUntil),
		})
	}
	for f := range d.fetches {
		i, ok := index[f.from]
		if !ok {
			i = -1 // no longer a parent; the request goes on
		}
		s.Fetching = append(s.Fetching, scheduler.Fetching{Piece: f.piece, Parent: i, Stuck: f.stuck})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Wanted = d.wanted.Clone()
	if size := t.Table().PieceSize; size > 0 {
		s.Window = int(max(d.e.o.Window/size, 1))
	} else {
		s.Window = 16
	}
	for r := range d.readers {
		s.Cursors = append(s.Cursors, r.next)
		if !r.whole && r.priority == pieces.Demand {
			s.Urgent = append(s.Urgent, r.next)
		}
	}
	return s, parents
}

// setDigests takes over published digests, and compares them with what is held
// without proof.
func (d *download) setDigests(m *apiv1.Digests) {
	d.mu.Lock()
	t := d.t
	d.mu.Unlock()
	if t == nil {
		return
	}
	first, digests, err := wire.Digests(m, t.Table().Count())
	if err != nil {
		d.e.o.Log.Warn("ignoring digests from the supernode", "task", d.id.Short(), "error", err)
		return
	}
	if m.Whole {
		d.mu.Lock()
		d.vouched = true
		d.wakeLocked()
		d.mu.Unlock()
	}
	for k, digest := range digests {
		i := first + k
		d.digests[i] = digest
		d.known.Add(i)
		if !t.Has(i) {
			continue
		}
		if err := t.Prove(i, digest); err != nil {
			d.e.o.Rejected("unproven")
			d.e.o.Log.Warn("dropped a piece that is not what the supernode published", "task", d.id.Short(), "piece", i, "error", err)
			d.wake()
			continue
		}
		d.report(i)
	}
}

// report tells the supernode that piece i is held.
func (d *download) report(i int) {
	d.e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Finished{Finished: &apiv1.Finished{
		TaskId: string(d.id), Pieces: []uint32{uint32(i)}, // #nosec G115 -- a piece number
	}}})
}

func (d *download) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wakeLocked()
}

// follow checks the digest of the whole as the pieces come.
func (d *download) follow(ctx context.Context, t *piecestore.Task) {
	err := d.check(ctx, t)
	for ctx.Err() == nil && isDamage(err) {
		err = d.check(ctx, t) // the piece is fetched again
	}
	if ctx.Err() != nil {
		return
	}
	d.post(func() {
		if err != nil && d.following == t {
			d.fail(err)
		}
		d.wake()
	})
}

// check waits until all is held, and marks it complete if it has the right
// digest.
func (d *download) check(ctx context.Context, t *piecestore.Task) error {
	got, err := t.Follow(ctx)
	if err != nil {
		return err
	}
	if want, ok := d.id.Digest(); ok && got != want {
		err := fmt.Errorf("%s: the content has SHA-256 %s: refused", d.id, got)
		d.e.o.Rejected("digest")
		return errors.Join(err, t.Reset())
	}
	return t.MarkComplete()
}

// isDamage reports whether err is of a piece that was found damaged on disk, and
// dropped, by whoever looked first.
func isDamage(err error) bool {
	var damaged *piecestore.DamagedError
	return errors.As(err, &damaged) || errors.Is(err, piecestore.ErrIncomplete)
}

const (
	// starvedAfter is how long no piece has come before foreign parents may be
	// asked for pieces outside the share, and the supernode is asked for help.
	starvedAfter = 2 * time.Second
	// askEvery is how often it is asked.
	askEvery = time.Second
)

// considerHunger asks the supernode for help when no piece has come for a while.
func (d *download) considerHunger(s scheduler.Download, now time.Time) {
	if !s.Starved || now.Sub(d.asked) < askEvery {
		return
	}
	missing := missing(s)
	if len(missing) == 0 {
		return
	}
	d.asked = now
	const some = 64
	m := &apiv1.Starved{TaskId: string(d.id)}
	for _, i := range missing[:min(len(missing), some)] {
		m.Pieces = append(m.Pieces, uint32(i)) // #nosec G115 -- a piece number
	}
	d.e.o.Supernode.Send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Starved{Starved: m}})
}

// missing lists the pieces that are wanted and not held.
func missing(s scheduler.Download) []int {
	var out []int
	for w := range s.Wanted {
		rest := task.Set{s.Wanted[w] &^ s.Held[w]}
		for b := range rest.All() {
			out = append(out, w*64+b)
		}
	}
	return out
}
