package cdn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// segment is a run of pieces [first, end) that one origin request covers.
type segment struct{ first, end int }

// fetch starts workers for what is wanted and not being fetched.
func (o *Object) fetch() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		limit := o.c.o.Parallel
		if !o.ranges {
			limit = 1
		}
		s, asked := o.nextLocked()
		if asked && o.ranges {
			limit++
		}
		if s.first == s.end || o.workers >= limit || o.c.ctx.Err() != nil {
			return
		}
		o.fetching.AddRange(s.first, s.end)
		o.workers++
		o.c.wg.Go(func() { o.work(s, nil) })
	}
}

// start makes body, which begins at offset 0, the first fetch.
func (o *Object) start(body *origin.Body) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := segment{0, o.table.Count()}
	if body.Ranged {
		_, s.end = o.table.Span(0, body.N)
		if off, n := int64(0), int64(0); s.end > 0 {
			// The last piece of the segment may reach beyond what was asked for.
			if off, n = o.table.Piece(s.end - 1); off+n > body.N {
				s.end--
			}
		}
	}
	o.fetching.AddRange(s.first, s.end)
	o.workers++
	o.c.wg.Go(func() { o.work(s, body) })
}

// nextLocked picks the next segment: the first asked-for piece that is missing,
// or else the first wanted one, and what follows it. asked tells which.
func (o *Object) nextLocked() (s segment, asked bool) {
	held := o.t.Held()
	missing := func(i int) bool { return !held.Has(i) && !o.fetching.Has(i) }
	for i := range o.asked.All() {
		if missing(i) {
			return o.runLocked(i, func(i int) bool { return o.asked.Has(i) && missing(i) }), true
		}
	}
	for i := range o.wanted.All() {
		if missing(i) {
			return o.runLocked(i, func(i int) bool { return o.wanted.Has(i) && missing(i) }), false
		}
	}
	return segment{}, false
}

// runLocked extends first to a run of pieces within one segment's size.
func (o *Object) runLocked(first int, take func(int) bool) segment {
	s, size := segment{first, first}, int64(0)
	for s.end < o.table.Count() && take(s.end) {
		_, n := o.table.Piece(s.end)
		if size += n; size > o.c.o.Segment && o.ranges && s.end > first {
			break
		}
		s.end++
	}
	return s
}

// work fetches s, from body if it is not nil, and then further segments until
// none is left.
func (o *Object) work(s segment, body *origin.Body) {
	var err error
	for s.first < s.end && err == nil {
		err = o.fetchSegment(s, body)
		body = nil
		o.mu.Lock()
		for i := s.first; i < s.end; i++ {
			o.fetching.Remove(i)
		}
		s = segment{}
		if err == nil {
			s, _ = o.nextLocked()
			o.fetching.AddRange(s.first, s.end)
		}
		o.mu.Unlock()
	}
	o.mu.Lock()
	o.workers--
	last := o.workers == 0
	if err != nil {
		clear(o.wanted) // the next request starts over
		clear(o.asked)
		o.whole = false
		if o.verifying {
			o.stopCheck()
		}
	}
	o.mu.Unlock()
	if err != nil && o.c.ctx.Err() == nil {
		o.c.o.Events.Failed(o.id, err)
	}
	if last {
		o.t.Touch()
	}
	o.c.settle(o)
}

// fetchSegment fetches the pieces of s that are missing. A credential that the
// origin no longer accepts is replaced by those that arrived since, and in the
// end by those the supernode is configured with: whoever takes part was let in
// when it came.
func (o *Object) fetchSegment(s segment, body *origin.Body) error {
	ctx, cancel := context.WithCancel(o.c.ctx)
	defer cancel()
	for attempt := 0; ; attempt++ {
		creds := o.credentials()
		err := o.tryOnce(ctx, s, body, creds)
		body = nil
		if err == nil || attempt >= maxCredentials || !denied(err) {
			return err
		}
		if sameCredentials(creds, o.credentials()) {
			if len(creds) == 0 || o.tryOnce(ctx, s, nil, nil) != nil {
				return err
			}
			return nil
		}
	}
}

func denied(err error) bool {
	var s *origin.StatusError
	return errors.As(err, &s) && (s.Status == 401 || s.Status == 403)
}

func sameCredentials(a, b []origin.Credential) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func (o *Object) tryOnce(ctx context.Context, s segment, body *origin.Body, creds []origin.Credential) error {
	for s.first < s.end && o.t.Has(s.first) {
		s.first++
	}
	if s.first == s.end {
		return nil
	}
	if body == nil {
		var err error
		if body, err = o.openSegment(ctx, s, creds); err != nil {
			return err
		}
	}
	defer body.Close()
	if !body.Ranged {
		return o.readWhole(ctx, body)
	}
	for i := s.first; i < s.end; i++ {
		if err := o.readPiece(ctx, body, i); err != nil {
			return err
		}
	}
	return nil
}

func (o *Object) openSegment(ctx context.Context, s segment, creds []origin.Credential) (*origin.Body, error) {
	off, _ := o.table.Piece(s.first)
	lastOff, lastN := o.table.Piece(s.end - 1)
	o.mu.Lock()
	source := o.source
	o.mu.Unlock()
	body, err := o.c.o.Origin.Open(ctx, source.object(creds), off, lastOff+lastN-off)
	if err != nil {
		return nil, fmt.Errorf("reading %s at %d: %w", origin.RedactURL(source.URL), off, err)
	}
	if body.Length >= 0 && body.Length != o.table.Length {
		return nil, errors.Join(
			fmt.Errorf("reading %s: it has %d bytes now and had %d", origin.RedactURL(source.URL), body.Length, o.table.Length),
			body.Close())
	}
	return body, nil
}

// readWhole takes content from an origin that does not serve ranges.
func (o *Object) readWhole(ctx context.Context, body io.Reader) error {
	o.mu.Lock()
	o.ranges = false
	o.mu.Unlock()
	for i := range o.table.Count() {
		if err := o.readPiece(ctx, body, i); err != nil {
			return err
		}
	}
	return nil
}

// readPiece takes piece i, the next in body.
func (o *Object) readPiece(ctx context.Context, body io.Reader, i int) error {
	_, n := o.table.Piece(i)
	if o.t.Has(i) {
		if _, err := io.CopyN(io.Discard, body, n); err != nil {
			return fmt.Errorf("reading past piece %d of %s: %w", i, o.id.Short(), err)
		}
		return nil
	}
	if _, err := o.t.WritePiece(ctx, i, nil, io.LimitReader(body, n)); err != nil {
		return fmt.Errorf("fetching piece %d of %s: %w", i, o.id.Short(), err)
	}
	o.publish()
	return nil
}

// spooled is content of unknown length that was read to its end.
type spooled struct {
	*os.File
	n int64
}

// Close removes the file.
func (s *spooled) Close() error {
	return errors.Join(s.File.Close(), os.Remove(s.Name()))
}

// spool reads body to its end into a temporary file.
func (c *Cache) spool(ctx context.Context, body *origin.Body) (_ *spooled, err error) {
	stop := context.AfterFunc(ctx, func() { _ = body.Close() })
	defer stop()
	defer body.Close()
	f, err := os.CreateTemp(c.o.SpoolDir, "spool-*")
	if err != nil {
		return nil, fmt.Errorf("spooling content of unknown length: %w", err)
	}
	s := &spooled{File: f}
	if s.n, err = io.Copy(f, body); err != nil {
		return nil, errors.Join(fmt.Errorf("spooling content of unknown length: %w", err), s.Close())
	}
	return s, nil
}

// load stores spooled content and removes it.
func (o *Object) load(s *spooled) error {
	defer s.Close()
	for i := range o.table.Count() {
		off, n := o.table.Piece(i)
		if _, err := o.t.WritePiece(o.c.ctx, i, nil, io.NewSectionReader(s, off, n)); err != nil {
			return fmt.Errorf("storing piece %d of %s: %w", i, o.id.Short(), err)
		}
	}
	o.publish()
	return nil
}
