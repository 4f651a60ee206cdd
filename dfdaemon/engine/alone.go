package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/scheduler"
)

// considerOrigin starts reading from the origin when there is no other way: no
// supernode, and no parent with anything that is missing.
func (d *download) considerOrigin(ctx context.Context, t *piecestore.Task) {
	if d.alone || len(d.fetches) > 0 {
		return
	}
	select {
	case <-d.e.o.Supernode.Tried():
	default:
		return
	}
	up, since := d.e.o.Supernode.Connected()
	if !scheduler.MayGoToOrigin(scheduler.OriginState{
		SupernodeReachable: up, UnreachableFor: d.e.o.Now().Sub(since),
		Active: len(d.e.origins), Cap: cap(d.e.origins),
	}, d.e.o.Grace) {
		return
	}
	if t != nil && len(d.wantedMissing(t)) == 0 {
		return
	}
	select {
	case d.e.origins <- struct{}{}:
	default:
		return // at the cap; the tick tries again
	}
	d.alone = true
	d.wg.Go(func() {
		err := d.readOrigin(ctx, t)
		<-d.e.origins
		d.post(func() { d.originEnded(err) })
	})
}

// originEnded concludes a read from the origin.
func (d *download) originEnded(err error) {
	d.alone = false
	if err == nil || errors.Is(err, errBack) || errors.Is(err, context.Canceled) {
		return
	}
	if up, _ := d.e.o.Supernode.Connected(); up {
		return // the swarm goes on
	}
	if errors.Is(err, piecestore.ErrFull) {
		d.fail(err)
		return
	}
	f := originFailure(d.id, err)
	if !d.passOn(f) {
		d.fail(f)
	}
}

// passOn gives the origin's refusal to whoever has started the download, and
// lets it go on by the right of those who have joined since. It reports false if
// there are none, or the origin has not refused.
func (d *download) passOn(f *Failure) bool {
	d.mu.Lock()
	r := d.r
	d.mu.Unlock()
	if f.Status < 400 || f.Status >= 500 || d.first.Authorized || !r.Authorized {
		return false
	}
	d.settle(f)
	d.first = r
	return true
}

// originFailure is err as what Open fails with.
func originFailure(id task.ID, err error) *Failure {
	f := &Failure{ID: id, Message: err.Error(), Permanent: origin.IsPermanent(err)}
	var answer *origin.StatusError
	if errors.As(err, &answer) {
		f.Status, f.Header = answer.Status, answer.Header
	}
	return f
}

// errBack ends a read from the origin because the supernode is back.
var errBack = errors.New("the supernode is back")

// readOrigin fetches what is wanted and missing from the origin.
func (d *download) readOrigin(ctx context.Context, t *piecestore.Task) error {
	first := t == nil || !isClosed(d.ready)
	d.mu.Lock()
	r := d.r
	d.mu.Unlock()
	if first {
		r = d.first // its rights are what the origin's answer settles
	}
	src, authorized := r.Source, r.Authorized
	obj := origin.Object{URL: src.URL, Header: src.Header}
	if !authorized || src.Credential != (origin.Credential{}) {
		obj.Credentials = []origin.Credential{src.Credential}
	}
	d.e.o.Log.Info("reading from the origin: no supernode is reachable", "task", d.id, "url", origin.RedactURL(src.URL))
	if first {
		var err error
		if t, err = d.readFirst(ctx, r, obj); err != nil {
			return err
		}
	}
	for {
		run := d.firstRun(t)
		if run.first == run.end {
			return nil
		}
		if err := d.readRun(ctx, t, obj, run); err != nil {
			return err
		}
	}
}

// readFirst makes the store's task from the origin's first answer, and stores
// what comes with that: all of the content, or, if the request has a table and
// wants parts, the first of them.
func (d *download) readFirst(ctx context.Context, r Request, obj origin.Object) (*piecestore.Task, error) {
	if !r.Whole && r.Table != nil && len(r.Ranges) == 0 {
		info, err := d.e.o.Origin.Head(ctx, obj)
		if err != nil {
			return nil, err
		}
		return d.adopt(ctx, r, info)
	}
	off, n := int64(0), int64(-1)
	if !r.Whole && r.Table != nil {
		run := runOf(*r.Table, r.Ranges[0])
		if off, n = extent(*r.Table, run); n == 0 {
			off, n = 0, -1
		}
	}
	body, err := d.e.o.Origin.Open(ctx, obj, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	t, err := d.adopt(ctx, r, body.Info)
	if err != nil {
		return nil, err
	}
	run := pieceRun{0, t.Table().Count()}
	if n > 0 && body.Ranged {
		run = runOf(t.Table(), Range{off, n})
		if from, size := extent(t.Table(), run); from != off || size != n {
			return t, nil // it is cut otherwise
		}
	}
	return t, d.takePieces(ctx, t, body, run.first, run.end)
}

// runOf is the run of pieces that hold rg.
func runOf(table task.Table, rg Range) pieceRun {
	first, end := table.Span(rg.Offset, rg.Length)
	return pieceRun{first, end}
}

// extent is where the pieces of run are in the content.
func extent(table task.Table, run pieceRun) (off, n int64) {
	if run.first == run.end {
		return 0, 0
	}
	off, _ = table.Piece(run.first)
	lastOff, lastN := table.Piece(run.end - 1)
	return off, lastOff + lastN - off
}

// adopt makes the store's task for content that the origin has described.
func (d *download) adopt(ctx context.Context, req Request, info origin.Info) (*piecestore.Task, error) {
	if info.Length < 0 {
		return nil, fmt.Errorf("%s: the origin does not tell the length, and no supernode is reachable", origin.RedactURL(req.URL))
	}
	made := make(chan error, 1)
	d.post(func() {
		d.mu.Lock()
		r, t := d.r, d.t
		d.mu.Unlock()
		table := task.Uniform(info.Length)
		if req.Table != nil && req.Table.Length == info.Length {
			table = *req.Table
		}
		var err error
		if t == nil || t.Table().Length != table.Length {
			err = d.create(r, table)
		}
		if err == nil {
			d.settle(nil)
			d.open()
		}
		made <- err
	})
	select {
	case err := <-made:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.t, nil
}

// pieceRun is the pieces [first, end).
type pieceRun struct{ first, end int }

// firstRun is the run of wanted, missing pieces that a reader waits for, or the
// first one.
func (d *download) firstRun(t *piecestore.Task) pieceRun {
	missing := d.wantedMissing(t)
	if len(missing) == 0 {
		return pieceRun{}
	}
	d.mu.Lock()
	from := 0
	for r := range d.readers {
		for k, i := range missing {
			if i >= r.next {
				from = k
				break
			}
		}
		break
	}
	d.mu.Unlock()
	run := pieceRun{missing[from], missing[from] + 1}
	for _, i := range missing[from+1:] {
		if i != run.end {
			break
		}
		run.end++
	}
	return run
}

func (d *download) wantedMissing(t *piecestore.Task) []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return missing(scheduler.Download{Wanted: d.wanted, Held: t.Held()})
}

func (d *download) readRun(ctx context.Context, t *piecestore.Task, obj origin.Object, run pieceRun) error {
	off, n := extent(t.Table(), run)
	body, err := d.e.o.Origin.Open(ctx, obj, off, n)
	if err != nil {
		return err
	}
	defer body.Close()
	if body.Length >= 0 && body.Length != t.Table().Length {
		return fmt.Errorf("%s: it has %d bytes now and had %d", origin.RedactURL(obj.URL), body.Length, t.Table().Length)
	}
	if !body.Ranged {
		run.first = 0
	}
	return d.takePieces(ctx, t, body, run.first, run.end)
}

// takePieces stores the pieces [first, end), which come next in body. It stops
// with errBack between two pieces when the supernode has come back.
func (d *download) takePieces(ctx context.Context, t *piecestore.Task, body io.Reader, first, end int) error {
	for i := first; i < end; i++ {
		_, n := t.Table().Piece(i)
		if t.Has(i) {
			if _, err := io.CopyN(io.Discard, body, n); err != nil {
				return err
			}
			continue
		}
		if _, err := t.WritePiece(ctx, i, nil, io.LimitReader(body, n)); err != nil {
			return err
		}
		d.received(FromOrigin, n)
		d.wake()
		if up, since := d.e.o.Supernode.Connected(); up && d.e.o.Now().Sub(since) > time.Second && i+1 < end {
			return errBack
		}
	}
	return nil
}
