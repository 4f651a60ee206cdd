package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
)

// Body is content being read. Read gives bytes as they come and resumes after
// failures; it allocates nothing while the connection holds. A Body is not safe
// for concurrent use; to end a Read from elsewhere, end the context.
type Body struct {
	// Info is what the first answer said of the object.
	Info
	// Offset of the first byte that Read delivers: the one asked for, or 0 if
	// the origin ignored the range.
	Offset int64
	// N is the number of bytes that Read delivers before io.EOF: less than asked
	// for if the object ends before; -1 if not known.
	N int64
	// Ranged is set if the origin answered with the range asked for. If not, the
	// whole content is delivered from its beginning.
	Ranged bool

	// Set once. The context is kept because io.Reader has no room for one.
	c   *Client
	ctx context.Context
	t   *target

	resp   *http.Response // nil when broken or ended
	opened bool           // the first answer has come
	pos    int64          // offset of the next byte to deliver
	failed int            // failures since the last byte
	broken error          // why the last connection ended, if a new one is needed
	err    error          // what Read returns from now on
}

// Open reads the n bytes at off, or all from off if n < 0, with one GET.
// Whether the range was granted is said by the Body. Reads beyond the end of
// the object give a StatusError 416 from origins with ranges.
//
// Errors: *StatusError for an answer that says so, after credentials and
// retries are exhausted; those of this package; the network's; the context's.
// The context governs the Body too.
func (c *Client) Open(ctx context.Context, obj Object, off, n int64) (*Body, error) {
	t, err := newTarget(obj, c.opts.UserAgent)
	if err != nil {
		return nil, err
	}
	if off < 0 || n == 0 {
		return nil, permanent(fmt.Errorf("open %s: range of %d bytes at %d", RedactURL(obj.URL), n, off))
	}
	if n < 0 || n > math.MaxInt64-off {
		n = -1
	}
	b := &Body{c: c, ctx: ctx, t: t, Offset: off, N: n, pos: off}
	if err := c.retry(ctx, &b.failed, nil, b.connect); err != nil {
		return nil, err
	}
	return b, nil
}

// end returns the offset after the last byte wanted, -1 if not known.
func (b *Body) end() int64 {
	if b.N < 0 {
		return -1
	}
	return b.Offset + b.N
}

// connect makes one attempt at a connection that continues at pos.
func (b *Body) connect() error {
	resp, err := b.ask(true)
	if se := (*StatusError)(nil); errors.As(err, &se) && se.Status == http.StatusRequestedRangeNotSatisfiable && (b.opened || b.pos == 0) {
		// An empty object has no range at all, some servers know no open ones,
		// and an object that shrank is told by comparing.
		resp, err = b.ask(false)
	}
	if err != nil {
		return err
	}
	if err := b.accept(resp); err != nil {
		_ = resp.Body.Close() // the rest may be long, so the connection is given up
		return err
	}
	b.resp, b.broken = resp, nil
	return nil
}

func (b *Body) ask(ranged bool) (*http.Response, error) {
	h := b.t.header.Clone()
	if ranged {
		h.Set("Range", formatRange(b.pos, b.end()))
		if v := b.validator(); b.opened && v != "" {
			h.Set("If-Range", v)
		}
	}
	return b.c.authorised(b.ctx, KindBlob, http.MethodGet, b.t, h)
}

// validator returns what If-Range may carry: a strong ETag, or the date if
// there is no ETag. A weak one would make every origin send the whole.
func (b *Body) validator() string {
	switch {
	case strings.HasPrefix(b.ETag, "W/"):
		return ""
	case b.ETag != "":
		return b.ETag
	}
	return b.LastModified
}

// accept checks an answer and moves it to pos.
func (b *Body) accept(resp *http.Response) error {
	got, total, err := readSpan(resp, b.pos, b.end())
	if err != nil {
		return err
	}
	info := describe(resp, total)
	if b.opened {
		if err := b.compare(info); err != nil {
			return err
		}
	} else {
		b.opened = true
		b.Info, b.Offset, b.N, b.pos = info, got.start, got.n, got.start
		b.Ranged = resp.StatusCode == http.StatusPartialContent
	}
	return b.skip(resp.Body, b.pos-got.start)
}

// compare reports a version of the object other than the one begun with. An
// ETag outranks the date, which servers behind one name may not agree on.
func (b *Body) compare(now Info) error {
	url := RedactURL(b.t.url.String())
	switch {
	case now.Length >= 0 && now.Length < b.pos:
		return fmt.Errorf("%w: %s had more than %d bytes, has %d", ErrChanged, url, b.pos, now.Length)
	case b.Length >= 0 && now.Length >= 0 && b.Length != now.Length:
		return fmt.Errorf("%w: %s had %d bytes, has %d", ErrChanged, url, b.Length, now.Length)
	case b.ETag != "" && now.ETag != "":
		if b.ETag != now.ETag {
			return fmt.Errorf("%w: %s had ETag %q, has %q", ErrChanged, url, clip(b.ETag), clip(now.ETag))
		}
	case b.LastModified != "" && now.LastModified != "" && b.LastModified != now.LastModified:
		return fmt.Errorf("%w: %s was of %q, is of %q", ErrChanged, url, clip(b.LastModified), clip(now.LastModified))
	}
	return nil
}

// skip reads over what was delivered before, for origins without ranges.
func (b *Body) skip(body io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	_, err := io.CopyN(io.Discard, body, n)
	if errors.Is(err, io.EOF) {
		err = ErrShort
	}
	if err != nil {
		return fmt.Errorf("GET %s: before byte %d: %w", RedactURL(b.t.url.String()), b.pos, err)
	}
	return nil
}

// Read implements io.Reader. Errors are those of Open; after one, and after
// io.EOF, it returns the same again.
func (b *Body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for b.err == nil {
		if b.pos == b.end() {
			b.finish(io.EOF)
			break
		}
		if b.resp == nil {
			if err := b.c.retry(b.ctx, &b.failed, b.broken, b.connect); err != nil {
				b.finish(err)
				break
			}
		}
		if n := b.read(p); n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// read makes one read of the present connection and notes how it ended. The
// resumption is left to the next call, so that bytes are not held back.
func (b *Body) read(p []byte) int {
	if b.N >= 0 {
		p = p[:min(int64(len(p)), b.end()-b.pos)]
	}
	n, err := b.resp.Body.Read(p)
	if n > 0 {
		b.pos += int64(n)
		b.failed = 0
	}
	switch {
	case b.pos == b.end(), err == io.EOF && b.N < 0:
		b.finish(io.EOF)
	case err != nil:
		if err == io.EOF {
			err = ErrShort
		}
		b.broken = fmt.Errorf("GET %s: at byte %d: %w", RedactURL(b.t.url.String()), b.pos, err)
		b.release()
	}
	return n
}

// finish ends the reading with err and gives the connection back at once: a
// reader that has all bytes may be slow to close.
func (b *Body) finish(err error) {
	b.err = err
	b.release()
}

func (b *Body) release() {
	if b.resp != nil {
		_ = b.resp.Body.Close() // nothing of it is wanted any more
		b.resp = nil
	}
}

// errClosed is what Read returns after Close.
var errClosed = errors.New("read from a closed origin body")

// Close ends the reading. It always returns nil.
func (b *Body) Close() error {
	b.finish(errClosed)
	return nil
}
