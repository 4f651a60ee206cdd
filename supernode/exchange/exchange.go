// Package exchange answers the small registry requests of a cluster: manifests,
// HEADs, tag lists, referrers.
//
// Equal requests (method, URL, headers that matter, credential) share one
// request to the origin while it is under way and for a short time after: a
// rollout that resolves the same tag on every node asks the registry once for
// each credential. What is named by digest cannot change and counts longer than
// what is named by tag, or the list of what refers to a digest; a refusal counts for a moment only, so that a new token
// or a new right works at once. Nothing is shared between credentials, and
// nothing is written to disk.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// ErrTooLarge says that the answer is larger than MaxBody: the asker should read
// it from the origin itself.
var ErrTooLarge = errors.New("answer is too large to share")

// MaxBody is the largest answer that is shared, in bytes. The distribution
// specification lets registries limit manifests to 4 MiB.
const MaxBody = 8 << 20

// Answer is the origin's answer. It is shared: not to be changed.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Next performs one request as an Exchanger without an Overlay does.
type Next func(ctx context.Context, method, url string, h http.Header) (*Answer, error)

// Overlay adds to what registries say.
type Overlay interface {
	// Do answers a request, with what next answers or without. It is called for
	// every request, and answers of its own are shared with nobody.
	Do(ctx context.Context, method, url string, h http.Header, next Next) (*Answer, error)
}

// Options configures an Exchanger. Origin is required.
type Options struct {
	Origin *origin.Client
	// Overlay sees each request first; default: none.
	Overlay Overlay
	Now     func() time.Time
	// TagTTL is how long an answer about something named by tag counts;
	// default 5 s.
	TagTTL time.Duration
	// DigestTTL is how long an answer about something named by digest counts;
	// default 60 s.
	DigestTTL time.Duration
	// RefusalTTL is how long a 401, 403 or 404 counts; default 1 s.
	RefusalTTL time.Duration
	// MaxBytes bounds the bodies kept; default 64 MiB.
	MaxBytes int64
}

// Exchanger shares answers. It is safe for concurrent use.
type Exchanger struct {
	o      Options
	flight singleflight.Group

	mu    sync.Mutex
	kept  map[string]entry
	bytes int64
}

type entry struct {
	answer *Answer
	until  time.Time
}

// New returns an exchanger.
func New(o Options) *Exchanger {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.TagTTL == 0 {
		o.TagTTL = 5 * time.Second
	}
	if o.DigestTTL == 0 {
		o.DigestTTL = 60 * time.Second
	}
	if o.RefusalTTL == 0 {
		o.RefusalTTL = time.Second
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	return &Exchanger{o: o, kept: map[string]entry{}}
}

// Do returns the origin's answer to a GET or HEAD of url.
func (e *Exchanger) Do(ctx context.Context, method, url string, h http.Header) (*Answer, error) {
	if method != http.MethodGet && method != http.MethodHead {
		return nil, fmt.Errorf("%s %s: only GET and HEAD are passed on", method, url)
	}
	if e.o.Overlay != nil {
		return e.o.Overlay.Do(ctx, method, url, h, e.do)
	}
	return e.do(ctx, method, url, h)
}

func (e *Exchanger) do(ctx context.Context, method, url string, h http.Header) (*Answer, error) {
	key := keyOf(method, url, h)
	if a := e.get(key); a != nil {
		return a, nil
	}
	// The request runs detached from its first asker: the others still want it.
	ch := e.flight.DoChan(key, func() (any, error) {
		if a := e.get(key); a != nil { // an equal request has ended since
			return a, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		a, err := e.ask(ctx, method, url, h)
		if err == nil {
			e.put(key, url, a)
		}
		return a, err
	})
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("%s %s: %w", method, url, ctx.Err())
	case r := <-ch:
		a, _ := r.Val.(*Answer) // nil with an error
		return a, r.Err
	}
}

func (e *Exchanger) ask(ctx context.Context, method, url string, h http.Header) (*Answer, error) {
	resp, err := e.o.Origin.Do(ctx, method, url, h)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %s %s: %w", method, url, err)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("%s %s: %w", method, url, ErrTooLarge)
	}
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

func (e *Exchanger) get(key string) *Answer {
	e.mu.Lock()
	defer e.mu.Unlock()
	k, ok := e.kept[key]
	if !ok || !e.o.Now().Before(k.until) {
		return nil
	}
	return k.answer
}

// put keeps a for as long as it counts.
func (e *Exchanger) put(key, url string, a *Answer) {
	ttl := e.o.TagTTL
	switch {
	case a.Status >= 500 || a.Status == http.StatusTooManyRequests:
		return
	case a.Status >= 400:
		ttl = e.o.RefusalTTL
	case strings.Contains(url, "/manifests/sha256:"), strings.Contains(url, "/blobs/sha256:"):
		ttl = e.o.DigestTTL
	}
	now := e.o.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bytes+int64(len(a.Body)) > e.o.MaxBytes || len(e.kept) > 10_000 {
		e.sweepLocked(now)
	}
	if old, ok := e.kept[key]; ok {
		e.bytes -= int64(len(old.answer.Body))
	}
	e.kept[key] = entry{answer: a, until: now.Add(ttl)}
	e.bytes += int64(len(a.Body))
}

// sweepLocked drops what no longer counts, or everything if that is not enough.
func (e *Exchanger) sweepLocked(now time.Time) {
	for k, v := range e.kept {
		if !now.Before(v.until) {
			e.bytes -= int64(len(v.answer.Body))
			delete(e.kept, k)
		}
	}
	if e.bytes > e.o.MaxBytes/2 || len(e.kept) > 5_000 {
		clear(e.kept)
		e.bytes = 0
	}
}

// keyOf names a request. The credential enters by its opaque key, so that the
// table holds no secrets.
func keyOf(method, url string, h http.Header) string {
	secret := origin.Credential{Authorization: strings.Join(h.Values("Authorization"), "\x00")}
	parts := []string{method, url, secret.Key()}
	for _, name := range []string{"Accept", "Range", "If-None-Match"} {
		values := append([]string(nil), h.Values(name)...)
		sort.Strings(values)
		parts = append(parts, strings.Join(values, ","))
	}
	return strings.Join(parts, "\x00")
}
