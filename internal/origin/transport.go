package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"time"
)

const maxRedirects = 10

// NewTransport returns the default transport: proxies from the environment,
// connections kept for reuse (32 per host), and answers that must begin within
// 30 seconds. Content is never decoded.
func NewTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   32,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		ExpectContinueTimeout: time.Second,
		ReadBufferSize:        256 << 10,
		DisableCompression:    true,
	}
}

// hopByHop are the headers that end at the next server, and Host and
// Content-Length, which belong to the connection as well.
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true,
	"Proxy-Authorization": true, "Proxy-Connection": true, "Te": true,
	"Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Host": true,
	"Content-Length": true,
}

// ownHeader reports headers that only the client may set.
func ownHeader(name string) bool {
	name = http.CanonicalHeaderKey(name)
	switch name {
	case "Authorization", "Range", "If-Range", "Accept-Encoding":
		return true
	}
	return hopByHop[name]
}

// endToEnd returns a copy of h without the headers of the connection it came by.
func endToEnd(h http.Header) http.Header {
	out := make(http.Header, len(h)+2)
	for name, values := range h {
		if name = http.CanonicalHeaderKey(name); !hopByHop[name] {
			out[name] = append(out[name], values...)
		}
	}
	for _, value := range h.Values("Connection") {
		for name := range strings.SplitSeq(value, ",") {
			out.Del(textproto.TrimString(name))
		}
	}
	return out
}

// portable are the headers that follow a redirect to another origin. All others
// stay behind: Authorization and Cookie, but also a caller's own header, which
// may be an API key.
var portable = []string{
	"Accept", "Accept-Encoding", "Range", "If-Range", "If-Match", "If-None-Match",
	"If-Modified-Since", "If-Unmodified-Since", "User-Agent",
}

func portableHeader(h http.Header) http.Header {
	out := make(http.Header, len(portable))
	for _, name := range portable {
		if values := h[name]; len(values) > 0 {
			out[name] = values
		}
	}
	return out
}

// originOf returns scheme://host:port in one spelling.
func originOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if strings.EqualFold(u.Scheme, "http") {
			port = "80"
		}
	}
	return strings.ToLower(u.Scheme) + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// exchange sends one request, follows its redirects and returns whatever
// answers in the end. The answer's body must be closed, and watches for stalls.
func (c *Client) exchange(ctx context.Context, kind, method string, u *url.URL, h http.Header) (*http.Response, error) {
	w := newWatch(ctx, c.opts.IdleTimeout)
	resp, err := c.follow(w, method, u, h)
	if err != nil {
		err = w.explain(err)
		w.end()
		c.opts.Observe(kind, 0, 0)
		return nil, fmt.Errorf("%s %s: %w", method, RedactURL(u.String()), err)
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, watch: w, observe: c.opts.Observe, kind: kind, status: resp.StatusCode}
	return resp, nil
}

// follow does by itself what http.Client does, because that keeps credentials
// across ports of a host and for its subdomains. Once a redirect has left the
// origin, headers left behind do not come back.
func (c *Client) follow(w *watch, method string, u *url.URL, h http.Header) (*http.Response, error) {
	for hop := 0; ; hop++ {
		resp, err := c.send(w, method, u, h)
		if err != nil {
			return nil, err
		}
		next, err := redirect(method, u, resp)
		if next == nil && err == nil {
			return resp, nil
		}
		drain(resp.Body)
		if err == nil && hop == maxRedirects {
			err = fmt.Errorf("%w: more than %d", ErrRedirect, maxRedirects)
		}
		if err != nil {
			return nil, err
		}
		if originOf(next) != originOf(u) {
			h = portableHeader(h)
		}
		u = next
	}
}

func (c *Client) send(w *watch, method string, u *url.URL, h http.Header) (*http.Response, error) {
	req := (&http.Request{
		Method: method, URL: u, Host: u.Host, Header: h.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(w.ctx)
	w.arm()
	resp, err := c.opts.Transport.RoundTrip(req)
	w.disarm()
	if err != nil {
		return nil, err
	}
	resp.Request = req // not every RoundTripper sets it
	return resp, nil
}

// redirect returns where an answer sends its request, nil if nowhere.
func redirect(method string, u *url.URL, resp *http.Response) (*url.URL, error) {
	if method != http.MethodGet && method != http.MethodHead {
		return nil, nil
	}
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	location := resp.Header.Get("Location")
	if location == "" {
		return nil, nil
	}
	next, err := u.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed Location", ErrRedirect)
	}
	if (next.Scheme != "http" && next.Scheme != "https") || next.Hostname() == "" {
		return nil, fmt.Errorf("%w: to %s", ErrRedirect, clip(RedactURL(next.String())))
	}
	next.User = nil
	return next, nil
}

// drain ends a body that is not wanted. Reading the rest of a small one lets
// the connection be used again.
func drain(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, drainLimit) // a failure costs only the reuse
	_ = body.Close()
}

// watch ends an exchange that receives nothing for too long. It runs only
// while something is waited for, so a slow reader is not taken for a slow
// origin.
type watch struct {
	ctx    context.Context // of the exchange
	parent context.Context // of the caller
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

func newWatch(parent context.Context, idle time.Duration) *watch {
	w := &watch{parent: parent, idle: idle}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	return w
}

// arm and disarm allocate nothing after the first time.
func (w *watch) arm() {
	if w.timer == nil {
		w.timer = time.AfterFunc(w.idle, func() { w.cancel(ErrStalled) })
		return
	}
	w.timer.Reset(w.idle)
}

func (w *watch) disarm() { w.timer.Stop() }

func (w *watch) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(nil)
}

// explain replaces an error that only says "canceled" by its reason.
func (w *watch) explain(err error) error {
	switch {
	case err == nil || err == io.EOF: //nolint:errorlint // called per read, and a reader does not wrap io.EOF
		return err
	case w.parent.Err() != nil:
		return w.parent.Err()
	case errors.Is(context.Cause(w.ctx), ErrStalled):
		return fmt.Errorf("%w for %v", ErrStalled, w.idle)
	}
	return err
}

// watchedBody is the body of an answer: it watches for stalls, counts, and
// reports the exchange when closed.
type watchedBody struct {
	io.ReadCloser
	watch   *watch
	observe func(kind string, status int, bytes int64)
	kind    string
	status  int
	bytes   int64
	closed  bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.watch.arm()
	n, err := b.ReadCloser.Read(p)
	b.watch.disarm()
	b.bytes += int64(n)
	return n, b.watch.explain(err)
}

func (b *watchedBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	err := b.ReadCloser.Close()
	b.watch.end()
	b.observe(b.kind, b.status, b.bytes)
	return err
}
