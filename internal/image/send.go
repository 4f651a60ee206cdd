package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
)

var errStalled = errors.New("the registry stalled")

// content is the body of a request: a slice of a blob. It counts, and watches
// that the other side keeps taking.
type content struct {
	n        int64 // its length
	progress func(sent int64)

	closed chan struct{}

	mu   sync.Mutex
	r    io.ReadCloser // guarded by mu
	sent int64         // guarded by mu
	done bool          // guarded by mu
	idle *time.Timer   // guarded by mu
	wait time.Duration
	// failed is why the blob could not be read, which is not the network's
	// fault; guarded by mu.
	failed error
}

// section opens n bytes at off of a blob.
func (b *Blob) section(ctx context.Context, off, n int64) (*content, error) {
	r, err := b.Open(ctx)
	if err != nil {
		return nil, errPermanent{fmt.Errorf("open the content: %w", err)}
	}
	if err := skip(r, off); err != nil {
		_ = r.Close() // only read from
		return nil, errPermanent{fmt.Errorf("read the content up to byte %d: %w", off, err)}
	}
	return &content{n: n, r: r, progress: func(sent int64) { b.Progress(off + sent) }, closed: make(chan struct{})}, nil
}

func skip(r io.Reader, off int64) error {
	if off == 0 {
		return nil
	}
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(off, io.SeekStart)
		return err
	}
	_, err := io.CopyN(io.Discard, r, off)
	return err
}

// Read implements io.Reader, for the transport.
func (c *content) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return 0, errors.New("read from a closed request body")
	}
	if c.idle != nil {
		c.idle.Reset(c.wait)
	}
	if c.sent == c.n {
		return 0, io.EOF
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.n-c.sent)])
	c.sent += int64(n)
	c.progress(c.sent)
	switch {
	case c.sent == c.n:
		return n, nil
	case errors.Is(err, io.EOF):
		c.failed = fmt.Errorf("%w: its content ends after %d bytes of %d", ErrCorrupt, c.sent, c.n)
		return n, c.failed
	case err != nil:
		c.failed = fmt.Errorf("read the content: %w", err)
	}
	return n, err
}

// Close implements io.Closer, for the transport. No Read touches the blob and
// no progress is told afterwards.
func (c *content) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return nil
	}
	c.done = true
	err := c.r.Close()
	close(c.closed)
	return err
}

func (c *content) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// watch calls stalled when nothing is taken for a while.
func (c *content) watch(wait time.Duration, stalled func()) *time.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wait, c.idle = wait, time.AfterFunc(wait, stalled)
	return c.idle
}

// finishFactor is how much longer than IdleTimeout a registry may take to check
// and store what it got.
const finishFactor = 10

// send makes one exchange of a push. An answer other than 2xx is a
// *origin.StatusError; its body is read in any case. body may be nil.
func (r *remote) send(ctx context.Context, method, to string, h http.Header, body *content) (http.Header, error) {
	answer, _, err := r.sendStatus(ctx, method, to, h, body)
	return answer, err
}

func (r *remote) sendStatus(ctx context.Context, method, to string, h http.Header, body *content) (http.Header, int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wait := r.opts.IdleTimeout * finishFactor
	if method == http.MethodPatch || method == http.MethodGet {
		wait = r.opts.IdleTimeout
	}
	req, err := http.NewRequestWithContext(ctx, method, to, nil)
	if err != nil {
		return nil, 0, errPermanent{errors.New("malformed URL of the registry")} // it may hold a signature
	}
	for name, values := range h {
		req.Header[name] = values
	}
	if body == nil {
		body = &content{r: http.NoBody, closed: make(chan struct{}), progress: func(int64) {}}
	}
	req.Body, req.ContentLength = body, body.n
	if body.n == 0 {
		req.Body = http.NoBody // a length of 0 with a body means that it is not known
		_ = body.Close()       // nothing will be read
	}
	timer := body.watch(wait, func() { cancel(errStalled) })
	defer timer.Stop()
	resp, err := r.rt.RoundTrip(req)
	if err != nil {
		cancel(nil)
		<-body.closed // the transport promises it
		return nil, 0, r.sendError(ctx, req, body, err)
	}
	timer.Reset(wait)
	if resp.StatusCode/100 != 2 {
		err = statusOf(resp)
	} else {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // only so that the connection can be used again
		_ = resp.Body.Close()                          // only read from
	}
	cancel(nil) // an answer before the end of the body ends the sending
	<-body.closed
	return resp.Header, resp.StatusCode, err
}

// sendError says why no answer came.
func (r *remote) sendError(ctx context.Context, req *http.Request, body *content, err error) error {
	if failed := body.failure(); failed != nil {
		return errPermanent{failed}
	}
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		err = cause
	}
	return fmt.Errorf("%s %s: %w", req.Method, origin.RedactURL(req.URL.String()), err)
}

// location returns the URL in a Location header. Content does not go to another
// server in the clear if the registry is asked by TLS.
func (r *remote) location(h http.Header) (string, error) {
	raw := h.Get("Location")
	base, err := url.Parse(r.base)
	if err != nil {
		return "", err
	}
	u, err := base.Parse(raw)
	if raw == "" || err != nil || u.Host == "" {
		return "", errPermanent{fmt.Errorf("%w: the registry gave no usable Location for the upload", ErrCorrupt)}
	}
	u.User = nil
	if u.Host == base.Host {
		u.Scheme = base.Scheme // registries behind a proxy may not know
	}
	if u.Scheme != base.Scheme && u.Scheme != "https" {
		return "", errPermanent{fmt.Errorf("%w: the registry sends uploads to %s", ErrUnsupported, origin.RedactURL(u.String()))}
	}
	return u.String(), nil
}
