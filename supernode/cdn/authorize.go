package cdn

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// authorize checks that r's credential may read r's content, by asking the
// origin unless that was settled a short time ago.
func (c *Cache) authorize(ctx context.Context, r Request) error {
	if r.Authorized || c.auth.has(r) {
		return nil
	}
	obj := r.object(nil)
	if c.o.StandIn != nil {
		if other, ok := c.o.StandIn(r.ID, r.URL); ok {
			obj = other
		}
	}
	obj.Credentials = []origin.Credential{r.Credential}
	if _, err := c.o.Origin.Head(ctx, obj); err != nil {
		return fmt.Errorf("checking the right to read %s: %w", origin.RedactURL(r.URL), err)
	}
	c.accepted(r)
	return nil
}

// accepted notes that the origin has let r's credential in. What it let in on
// behalf of an authorized request may have been the supernode's own.
func (c *Cache) accepted(r Request) {
	if !r.Authorized {
		c.auth.add(r)
	}
}

// scope is what a credential's acceptance is remembered for: the repository of
// a registry URL, any other URL by itself.
func scope(rawURL string) string {
	if i := strings.LastIndex(rawURL, "/blobs/"); i > 0 && strings.Contains(rawURL[:i], "/v2/") {
		return rawURL[:i]
	}
	return rawURL
}

// maxEntries bounds the short-lived caches; the oldest half goes when one is
// full.
const maxEntries = 100_000

// authCache remembers which credentials the origin accepted for which scope.
type authCache struct {
	ttl time.Duration
	now func() time.Time

	mu    sync.Mutex
	until map[string]time.Time
}

func newAuthCache(ttl time.Duration, now func() time.Time) *authCache {
	return &authCache{ttl: ttl, now: now, until: map[string]time.Time{}}
}

func authKey(r Request) string { return scope(r.URL) + "\x00" + r.Credential.Key() }

func (a *authCache) has(r Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now().Before(a.until[authKey(r)])
}

func (a *authCache) add(r Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if len(a.until) >= maxEntries {
		for k, t := range a.until {
			if now.After(t) || len(a.until) > maxEntries/2 {
				delete(a.until, k)
			}
		}
	}
	a.until[authKey(r)] = now.Add(a.ttl)
}

// urlCache remembers which task a URL led to.
type urlCache struct {
	ttl time.Duration
	now func() time.Time

	mu   sync.Mutex
	tags map[string]resolved
}

type resolved struct {
	id      task.ID
	meta    Meta
	fetched time.Time
}

func newURLCache(ttl time.Duration, now func() time.Time) *urlCache {
	return &urlCache{ttl: ttl, now: now, tags: map[string]resolved{}}
}

// get returns what url led to, and whether that is recent enough to rely on.
func (u *urlCache) get(url string) (r resolved, fresh bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r, ok := u.tags[url]
	return r, ok && u.now().Sub(r.fetched) < u.ttl
}

func (u *urlCache) put(url string, id task.ID, meta Meta) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.tags) >= maxEntries {
		clear(u.tags)
	}
	u.tags[url] = resolved{id: id, meta: meta, fetched: u.now()}
}
