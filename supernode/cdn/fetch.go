package cdn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
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
		if !o.c.spawn(func() { o.work(s, nil) }) {
			return
		}
		o.fetching.AddRange(s.first, s.end)
		o.workers++
	}
}

// reserve marks the pieces within at as being fetched, by a worker that the
// caller starts. There are none if no piece begins with at: the content is cut
// otherwise than its asker thought. Nobody else knows o yet.
func (o *Object) reserve(at span) segment {
	s := segment{0, o.table.Count()}
	if at.off > 0 || at.n < o.table.Length {
		s.first, s.end = o.table.Span(at.off, at.n)
		if off, _ := o.table.Piece(s.first); off != at.off {
			s.end = s.first
		} else if off, size := o.table.Piece(s.end - 1); off+size > at.off+at.n {
			s.end-- // it reaches beyond
		}
	}
	if s.first == 0 && s.end == o.table.Count() { // all of it comes, so it can be checked
		o.whole = true
		o.wanted.AddRange(s.first, s.end)
	}
	o.fetching.AddRange(s.first, s.end)
	o.workers++
	return s
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

// work fetches s, from first if it is not nil, and then further segments until
// none is left.
func (o *Object) work(s segment, first *opened) {
	for more := true; more; {
		var err error
		if s.first < s.end {
			err = o.fetchSegment(s, first)
		}
		if first != nil {
			_ = first.Close() // nothing more of it is wanted
			first = nil
		}
		if s, more = o.done(s, err); err != nil && !errors.Is(err, errElsewhere) {
			o.failed(err)
		}
	}
	o.c.settle(o)
}

// done notes how the fetch of s ended and picks the worker's next segment. A
// worker that has none is gone from here on: who wants more starts another.
func (o *Object) done(s segment, err error) (next segment, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !errors.Is(err, errElsewhere) {
		for i := s.first; i < s.end; i++ {
			o.fetching.Remove(i)
		}
	}
	if err == nil {
		if next, _ = o.nextLocked(); next.first < next.end {
			o.fetching.AddRange(next.first, next.end)
			return next, true
		}
	}
	o.workers--
	if o.workers == 0 {
		o.t.Touch()
	}
	if err != nil && !errors.Is(err, errElsewhere) {
		o.giveUpLocked(err)
	}
	return segment{}, false
}

// giveUpLocked forgets what is wanted. The next request starts over.
func (o *Object) giveUpLocked(why error) {
	o.gaveUp = why
	o.wakeLocked()
	clear(o.wanted)
	clear(o.asked)
	o.whole = false
	if o.verifying {
		o.stopCheck()
	}
}

// failed tells why what was wanted was given up.
func (o *Object) failed(err error) {
	if errors.Is(err, errOtherLength) && o.t.HeldCount() == 0 {
		o.discard.Store(true)
	}
	if o.c.ctx.Err() == nil {
		o.c.o.Events.Failed(o.id, err)
	}
}

// fetchSegment fetches the pieces of s that are missing. A credential that the
// origin no longer accepts is replaced by those that arrived since.
func (o *Object) fetchSegment(s segment, first *opened) error {
	ctx, cancel := context.WithCancel(o.c.ctx)
	defer cancel()
	if first != nil {
		if err := o.receive(ctx, s, first.Body); !denied(err) {
			return err
		}
	}
	for attempt := 0; ; attempt++ {
		places, arrivals := o.places()
		err := o.tryOnce(ctx, s, places)
		if !denied(err) || attempt >= maxSources {
			return err
		}
		// What was opened before a token ended may be opened with another one.
		if _, now := o.places(); attempt > 0 && now == arrivals {
			return err
		}
	}
}

// denied reports whether err may be about the credential.
func denied(err error) bool {
	var s *origin.StatusError
	return errors.As(err, &s) && (s.Status == http.StatusUnauthorized || s.Status == http.StatusForbidden || s.Status == http.StatusNotFound)
}

func (o *Object) tryOnce(ctx context.Context, s segment, places []origin.Object) error {
	for s.first < s.end && o.t.Has(s.first) {
		s.first++
	}
	if s.first == s.end {
		return nil
	}
	body, err := o.openSegment(ctx, s, places)
	if err != nil {
		return err
	}
	defer body.Close()
	return o.receive(ctx, s, body)
}

// receive takes the pieces of s from body, which begins with the first of them
// or, if the origin serves no ranges, with the content.
func (o *Object) receive(ctx context.Context, s segment, body *origin.Body) error {
	if !body.Ranged {
		return o.readWhole(ctx, body)
	}
	o.mu.Lock()
	o.ranges = true
	o.mu.Unlock()
	for i := s.first; i < s.end; i++ {
		if err := o.readPiece(ctx, body, i); err != nil {
			return err
		}
	}
	return nil
}

// openSegment opens s at the first of places that serves it; those without a
// credential that is accepted are asked with the supernode's own, too: whoever
// takes part was let in when it came.
func (o *Object) openSegment(ctx context.Context, s segment, places []origin.Object) (*origin.Body, error) {
	off, _ := o.table.Piece(s.first)
	lastOff, lastN := o.table.Piece(s.end - 1)
	why := fmt.Errorf("reading %s: nobody has said where it is", o.id.Short())
	for i, place := range places {
		body, err := o.c.o.Origin.Open(ctx, place, off, lastOff+lastN-off)
		if denied(err) && len(place.Credentials) > 0 {
			place.Credentials = nil
			if own, ownErr := o.c.o.Origin.Open(ctx, place, off, lastOff+lastN-off); ownErr == nil {
				body, err = own, nil
			}
		}
		if err == nil {
			if err = o.compare(place.URL, body.Info); err == nil {
				return body, nil
			}
			_ = body.Close() // of something else
		}
		if i == 0 {
			why = fmt.Errorf("reading %s at %d: %w", origin.RedactURL(place.URL), off, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, why
}

// errOtherLength is part of why a fetch fails when the origin's content does not
// have the length that the object was made with.
var errOtherLength = errors.New("the length is another than before")

// compare reports content at url that cannot be, or is not, what the object was
// made of. Content with a digest is left to that. The name of other content
// covers its URL, so that nobody can bring in another one under the same name.
func (o *Object) compare(url string, now origin.Info) error {
	if now.Length >= 0 && now.Length != o.table.Length {
		return fmt.Errorf("%w: %w: %d bytes, had %d", origin.ErrChanged, errOtherLength, now.Length, o.table.Length)
	}
	_, checkable := o.id.Digest()
	unnamed := now.ETag == "" && now.LastModified == ""
	if checkable || unnamed && url == o.url || task.URLID(url, now.ETag, now.LastModified, now.Length) == o.id {
		return nil
	}
	return fmt.Errorf("%w: it has ETag %q and is of %q now", origin.ErrChanged, now.ETag, now.LastModified)
}

// errElsewhere ends a worker whose pieces another one fetches.
var errElsewhere = errors.New("another worker reads the whole content")

// readWhole takes content from an origin that does not serve ranges. One worker
// does that; what others were to fetch becomes its work.
func (o *Object) readWhole(ctx context.Context, body io.Reader) error {
	o.mu.Lock()
	o.ranges = false
	if o.reading {
		o.mu.Unlock()
		return errElsewhere
	}
	o.reading = true
	o.fetching.AddRange(0, o.table.Count())
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.reading = false
		clear(o.fetching)
	}()
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
func (c *Cache) spool(body *opened) (_ *spooled, err error) {
	defer body.Close() //nolint:errcheck // read to its end, or given up
	f, err := os.CreateTemp(c.o.SpoolDir, "spool-*")
	if err != nil {
		return nil, fmt.Errorf("spooling content of unknown length: %w", err)
	}
	s := &spooled{File: f}
	from := io.Reader(body)
	limit := c.o.Store.Usage().Limit
	if limit > 0 {
		from = io.LimitReader(body, limit+1)
	}
	if s.n, err = io.Copy(f, from); err == nil && limit > 0 && s.n > limit {
		err = fmt.Errorf("%w: content has more than the limit of %d bytes", piecestore.ErrFull, limit)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("spooling content of unknown length: %w", err), s.Close())
	}
	return s, nil
}

// load stores spooled content, whose pieces are reserved, and removes it.
func (o *Object) load(from *spooled, s segment) error {
	defer from.Close() //nolint:errcheck // a copy that is not needed any more
	err := o.store(from)
	next, more := o.done(s, err)
	if err != nil {
		o.failed(err)
		return err
	}
	o.publish()
	if more { // a piece has gone again
		o.c.spawn(func() { o.work(next, nil) })
	}
	return nil
}

func (o *Object) store(from *spooled) error {
	for i := range o.table.Count() {
		off, n := o.table.Piece(i)
		if _, err := o.t.WritePiece(o.c.ctx, i, nil, io.NewSectionReader(from, off, n)); err != nil {
			return fmt.Errorf("storing piece %d of %s: %w", i, o.id.Short(), err)
		}
	}
	return nil
}
