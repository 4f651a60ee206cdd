// Package proxy is the node's forward proxy for files: clients that are told of
// it (http_proxy) get plain-HTTP URLs that match a rule through the swarm.
//
// Everything else is passed on untouched: other URLs, methods other than GET,
// requests with cookies or conditions, and CONNECT, which is a tunnel. The
// proxy never sees inside TLS. Without a rule it is an ordinary proxy; it
// should listen on loopback only.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/internal/httprange"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Options configures a Proxy. Engine is required.
type Options struct {
	Engine *engine.Engine
	// Rules are regular expressions over whole URLs.
	Rules []string
	Log   *slog.Logger
}

// Proxy is the forward proxy. It is an http.Handler.
type Proxy struct {
	o       Options
	rules   []*regexp.Regexp
	forward *httputil.ReverseProxy
	dialer  net.Dialer
}

// New returns a proxy.
func New(o Options) (*Proxy, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{o: o, dialer: net.Dialer{Timeout: 10 * time.Second}}
	for _, rule := range o.Rules {
		re, err := regexp.Compile(rule)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", rule, err)
		}
		p.rules = append(p.rules, re)
	}
	// No proxy of its own: one that is told of itself goes round in circles.
	transport := &http.Transport{
		DialContext: p.dialer.DialContext, DisableCompression: true,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
	}
	p.forward = &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host },
		Transport: transport,
		ErrorLog:  slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			http.Error(w, fmt.Sprintf("damselfly proxy: %s: %v", origin.RedactURL(r.URL.String()), err), http.StatusBadGateway)
		},
	}
	return p, nil
}

// ServeHTTP answers one request of a proxy client.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	case !r.URL.IsAbs() || r.URL.Scheme != "http":
		http.Error(w, "this is a forward proxy for plain HTTP: set it as http_proxy and ask for absolute http URLs", http.StatusBadRequest)
	case p.matches(r):
		p.fetch(w, r)
	default:
		p.forward.ServeHTTP(w, r)
	}
}

// matches reports whether the swarm may answer r.
func (p *Proxy) matches(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	for _, name := range []string{"Cookie", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	u := r.URL.String()
	for _, rule := range p.rules {
		if rule.MatchString(u) {
			return true
		}
	}
	return false
}

// fetch answers through the swarm.
func (p *Proxy) fetch(w http.ResponseWriter, r *http.Request) {
	req := engine.Request{
		Source: wire.Source{
			URL: r.URL.String(), Header: http.Header{},
			Credential: origin.Credential{Authorization: r.Header.Get("Authorization")},
		},
		Priority: pieces.Demand, Whole: r.Header.Get("Range") == "",
	}
	if accept := r.Header.Get("Accept"); accept != "" {
		req.Header.Set("Accept", accept)
	}
	h, err := p.o.Engine.Open(r.Context(), req)
	if err != nil {
		p.failed(w, r, err)
		return
	}
	defer h.Close()
	meta := h.Meta()
	set := func(name, value string) {
		if value != "" {
			w.Header().Set(name, value)
		}
	}
	set("Content-Type", meta.ContentType)
	set("Etag", meta.ETag)
	set("Last-Modified", meta.LastModified)
	w.Header().Set("Accept-Ranges", "bytes")
	size := h.Table().Length
	off, n, partial, err := httprange.Parse(r.Header.Get("Range"), size)
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		http.Error(w, err.Error(), http.StatusRequestedRangeNotSatisfiable)
		return
	}
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size))
		err = h.Want([]engine.Range{{Offset: off, Length: n}})
	}
	if err != nil {
		p.failed(w, r, err)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	w.WriteHeader(status)
	if _, err := h.Copy(r.Context(), w, off, n); err != nil {
		if !errors.Is(err, context.Canceled) {
			p.o.Log.Warn("a file was cut off", "url", origin.RedactURL(r.URL.String()), "error", err)
		}
		panic(http.ErrAbortHandler) // the client must not take it for the whole
	}
}

// failed answers with what the origin said, if it did.
func (p *Proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	var f *engine.Failure
	if errors.As(err, &f) && f.Status >= 400 {
		status = f.Status
		for _, name := range []string{"Www-Authenticate", "Retry-After"} {
			for _, v := range f.Header[name] {
				w.Header().Add(name, v)
			}
		}
	}
	http.Error(w, fmt.Sprintf("damselfly proxy: %s: %v", origin.RedactURL(r.URL.String()), err), status)
}

// tunnel connects the client to the host that it names, and looks at nothing.
func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	out, err := p.dialer.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, fmt.Sprintf("damselfly proxy: %v", err), http.StatusBadGateway)
		return
	}
	defer out.Close() //nolint:errcheck // both directions have ended
	in, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, fmt.Sprintf("damselfly proxy: %v", err), http.StatusInternalServerError)
		return
	}
	defer in.Close() //nolint:errcheck // as above
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return
	}
	// Only what the server has read already comes from its buffer: reading the
	// client's end through it would end the request, and the answer with it.
	early := io.LimitReader(buffered, int64(buffered.Reader.Buffered()))
	var both sync.WaitGroup
	both.Go(func() { pipe(out, io.MultiReader(early, in)) })
	both.Go(func() { pipe(in, out) })
	both.Wait()
}

// pipe copies one direction and passes its end on.
func pipe(dst net.Conn, src io.Reader) {
	_, _ = io.Copy(dst, src) // an end is an end
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = dst.Close()
}
