package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	defaultTokenLife = time.Minute // if the server does not say, as the protocol has it
	maxTokenLife     = 24 * time.Hour
	tokenSizeLimit   = 1 << 20
	maxTokens        = 4096
)

// tokenKey is what a token is good for. The origin is part of it: one registry
// must not get another's token by naming its realm.
type tokenKey struct{ origin, realm, service, scope, cred string }

type token struct {
	value   string
	expires time.Time
}

// tokenStore keeps tokens until shortly before they expire and has one fetch
// under way per key.
type tokenStore struct {
	now func() time.Time

	mu    sync.Mutex
	held  map[tokenKey]token      // guarded by mu
	calls map[tokenKey]*tokenCall // guarded by mu
}

// tokenCall is a fetch under way. The fields are set before done is closed.
type tokenCall struct {
	done  chan struct{}
	token token
	err   error
	// abandoned: the fetching request itself was given up, which says nothing
	// about the token.
	abandoned bool
}

func newTokenStore(now func() time.Time) *tokenStore {
	return &tokenStore{now: now, held: map[tokenKey]token{}, calls: map[tokenKey]*tokenCall{}}
}

// get returns a token, calling fetch if none is held. Fresh is set if it was
// fetched during this call. Concurrent calls with one key share a fetch and its
// error; fetch runs on the goroutine of one of them, under its context.
func (s *tokenStore) get(ctx context.Context, key tokenKey, fetch func() (token, error)) (value string, fresh bool, err error) {
	for {
		s.mu.Lock()
		if t, ok := s.held[key]; ok && s.now().Before(t.expires) {
			s.mu.Unlock()
			return t.value, false, nil
		}
		call, ok := s.calls[key]
		if !ok {
			call = &tokenCall{done: make(chan struct{})}
			s.calls[key] = call
			s.mu.Unlock()
			s.lead(ctx, key, call, fetch)
			return call.token.value, true, call.err
		}
		s.mu.Unlock()
		select {
		case <-call.done:
			if !call.abandoned {
				return call.token.value, true, call.err
			}
		case <-ctx.Done():
			return "", false, ctx.Err()
		}
	}
}

func (s *tokenStore) lead(ctx context.Context, key tokenKey, call *tokenCall, fetch func() (token, error)) {
	call.abandoned = true // until fetch returns: waiters must not hang on a panic
	defer func() {
		s.mu.Lock()
		delete(s.calls, key)
		if !call.abandoned && call.err == nil {
			s.makeRoom()
			s.held[key] = call.token
		}
		s.mu.Unlock()
		close(call.done)
	}()
	call.token, call.err = fetch()
	call.abandoned = call.err != nil && ctx.Err() != nil
}

// makeRoom is called with mu held.
func (s *tokenStore) makeRoom() {
	if len(s.held) < maxTokens {
		return
	}
	now := s.now()
	for key, t := range s.held {
		if !now.Before(t.expires) {
			delete(s.held, key)
		}
	}
	if len(s.held) >= maxTokens {
		clear(s.held)
	}
}

// drop forgets a token that was refused, unless it has been replaced already.
func (s *tokenStore) drop(key tokenKey, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key].value == value {
		delete(s.held, key)
	}
}

var errUnsafeRealm = errors.New("token server is plain HTTP on another host than the registry: not sending a password")

// fetchToken gets a token from the server that a registry named. A server that
// refuses, refuses the credential.
func (c *Client) fetchToken(ctx context.Context, t *target, key tokenKey, cred Credential) (token, error) {
	realm, err := parseURL(key.realm)
	if err != nil {
		return token{}, refusal{permanent(fmt.Errorf("token server of %s: %w", t.origin, err))}
	}
	h := http.Header{}
	setDefaults(h, c.opts.UserAgent)
	h.Set("Accept", "application/json")
	if cred.password() {
		if realm.Scheme != "https" && (t.url.Scheme != "http" || !strings.EqualFold(realm.Hostname(), t.url.Hostname())) {
			return token{}, refusal{permanent(fmt.Errorf("%s: %w", RedactURL(key.realm), errUnsafeRealm))}
		}
		h.Set("Authorization", cred.basic())
	}
	asked := c.opts.Now() // the life begins at the server, before its answer is here
	resp, err := c.exchange(ctx, KindToken, http.MethodGet, tokenURL(realm, key), h)
	if err != nil {
		return token{}, err
	}
	if resp.StatusCode/100 != 2 {
		se := statusError(http.MethodGet, originOf(realm), resp)
		if se.Temporary() {
			return token{}, se
		}
		return token{}, refusal{se}
	}
	defer drain(resp.Body)
	return readToken(resp, asked)
}

// tokenURL adds the query of the token protocol to a realm, which may have one.
func tokenURL(realm *url.URL, key tokenKey) *url.URL {
	u := *realm
	q := u.Query()
	if key.service != "" {
		q.Set("service", key.service)
	}
	if scopes := strings.Fields(key.scope); len(scopes) > 0 {
		q["scope"] = scopes
	}
	u.RawQuery = q.Encode()
	return &u
}

func readToken(resp *http.Response, asked time.Time) (token, error) {
	var doc struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	url := RedactURL(resp.Request.URL.String())
	body, err := io.ReadAll(io.LimitReader(resp.Body, tokenSizeLimit))
	if err != nil {
		return token{}, fmt.Errorf("read token from %s: %w", url, err)
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		// The decoder's own message may quote from the document.
		return token{}, fmt.Errorf("%w: %s sent no token but %d bytes of something else", ErrBadAnswer, url, len(body))
	}
	value := doc.Token
	if value == "" {
		value = doc.AccessToken
	}
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return token{}, fmt.Errorf("%w: %s sent no usable token", ErrBadAnswer, url)
	}
	return token{value: value, expires: asked.Add(tokenLife(doc.ExpiresIn))}, nil
}

// tokenLife returns how long to use a token that expires in so many seconds: a
// tenth less, at most 30 s less, so that it does not expire on its way.
func tokenLife(seconds int64) time.Duration {
	life := defaultTokenLife
	if seconds > 0 {
		life = time.Duration(min(seconds, int64(maxTokenLife/time.Second))) * time.Second
	}
	return life - min(life/10, 30*time.Second)
}
