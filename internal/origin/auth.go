package origin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync"
)

// refusal is an error that is about the credential: another may be accepted.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

// authorised makes a request with the object's credentials in turn and returns
// a 2xx answer or an error.
func (c *Client) authorised(ctx context.Context, kind, method string, t *target, h http.Header) (*http.Response, error) {
	var last error
	for cred, err := range c.candidates(ctx, t) {
		if err != nil {
			if last == nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w (after %w)", err, last)
		}
		resp, err := c.try(ctx, kind, method, t, h, cred) //nolint:bodyclose // the caller closes it
		if err == nil {
			c.memory.accept(t.scope, cred.Key())
			return resp, nil
		}
		var no refusal
		if !errors.As(err, &no) {
			return nil, err
		}
		c.memory.refuse(t.scope, cred.Key())
		last = no.error
	}
	return nil, last
}

// candidates yields the credentials to try, the promising ones first.
func (c *Client) candidates(ctx context.Context, t *target) iter.Seq2[Credential, error] {
	return func(yield func(Credential, error) bool) {
		if len(t.creds) > 0 {
			c.ranked(t, yield)
			return
		}
		anonymousFirst := c.opts.Keychain == nil || c.memory.verdict(t.scope, Credential{}.Key()) != refused
		if anonymousFirst && !yield(Credential{}, nil) {
			return
		}
		if c.opts.Keychain == nil {
			return
		}
		cred, ok, err := c.opts.Keychain.Resolve(ctx, t.url.Host)
		if err == nil && ok {
			err = cred.validate()
		}
		if err != nil {
			yield(Credential{}, permanent(fmt.Errorf("find credentials for %s: %w", t.url.Host, err)))
			return
		}
		if ok && !yield(cred, nil) {
			return
		}
		if !anonymousFirst {
			yield(Credential{}, nil)
		}
	}
}

func (c *Client) ranked(t *target, yield func(Credential, error) bool) {
	verdicts := make([]verdict, len(t.creds))
	for i, cred := range t.creds {
		verdicts[i] = c.memory.verdict(t.scope, cred.Key())
	}
	for _, rank := range []verdict{accepted, unknown, refused} {
		for i, cred := range t.creds {
			if verdicts[i] == rank && !yield(cred, nil) {
				return
			}
		}
	}
}

// try makes a request with one credential, logging in as the origin asks.
func (c *Client) try(ctx context.Context, kind, method string, t *target, h http.Header, cred Credential) (*http.Response, error) {
	l := &login{c: c, t: t, cred: cred, credKey: cred.Key()}
	value, err := l.begin(ctx)
	for err == nil {
		sent := h
		if value != "" {
			sent = h.Clone()
			sent.Set("Authorization", value)
		}
		resp, xerr := c.exchange(ctx, kind, method, t.url, sent)
		if xerr != nil {
			return nil, xerr
		}
		if resp.StatusCode/100 == 2 {
			return resp, nil
		}
		se := statusError(method, t.origin, resp)
		if se.Redirected || (se.Status != http.StatusUnauthorized && se.Status != http.StatusForbidden) {
			return nil, se
		}
		var again bool
		if value, again, err = l.answer(ctx, se); err == nil && !again {
			return nil, refusal{se}
		}
	}
	return nil, err
}

// login is the way of one credential through an origin's challenges.
type login struct {
	c       *Client
	t       *target
	cred    Credential
	credKey string

	key    tokenKey // of token
	token  string   // the bearer token sent last
	rounds int      // challenges answered
	final  bool     // what was sent last is the best there is
}

// begin returns the Authorization value to begin with: what worked before.
func (l *login) begin(ctx context.Context) (string, error) {
	if l.cred.Authorization != "" {
		l.final = true
		return l.cred.Authorization, nil
	}
	ch, ok := l.c.memory.challenge(l.t.scope, l.credKey)
	switch {
	case !ok:
		return "", nil
	case ch.scheme == "basic":
		l.final = true
		return l.cred.basic(), nil
	}
	value, err := l.bearer(ctx, ch)
	if l.turnedAway(err) {
		l.final = true
		return "", nil
	}
	return value, err
}

// turnedAway reports whether err says that the token server gives nothing to
// whoever has no credential. Then the origin's own refusal is the answer: it has
// the challenge by which a client finds out where to log in.
func (l *login) turnedAway(err error) bool {
	var no refusal
	var answer *StatusError
	return l.cred == (Credential{}) && errors.As(err, &no) && errors.As(err, &answer)
}

// answer returns what to send after a refusal, and false if nothing is left to
// try with this credential.
func (l *login) answer(ctx context.Context, se *StatusError) (string, bool, error) {
	// A 403 names no way in. The rounds are bounded because a token shared with
	// other requests may be replaced again and again without being accepted.
	if l.final || se.Status != http.StatusUnauthorized || l.rounds == 3 {
		return "", false, nil
	}
	l.rounds++
	if l.token != "" {
		l.c.tokens.drop(l.key, l.token)
	}
	ch, ok := l.choose(challenges(se.Header))
	if !ok {
		return "", false, nil
	}
	l.c.memory.learn(l.t.scope, l.credKey, ch)
	if ch.scheme == "basic" {
		l.final = true
		return l.cred.basic(), true, nil
	}
	value, err := l.bearer(ctx, ch)
	if l.turnedAway(err) {
		return "", false, nil
	}
	return value, true, err
}

// choose prefers a token, which shows the password to fewer servers.
func (l *login) choose(offered []challenge) (challenge, bool) {
	for _, ch := range offered {
		if ch.scheme == "bearer" && ch.params["realm"] != "" {
			return ch, true
		}
	}
	for _, ch := range offered {
		if ch.scheme == "basic" && l.cred.password() {
			return ch, true
		}
	}
	return challenge{}, false
}

func (l *login) bearer(ctx context.Context, ch challenge) (string, error) {
	l.key = tokenKey{
		origin: l.t.origin, cred: l.credKey,
		realm: ch.params["realm"], service: ch.params["service"], scope: ch.params["scope"],
	}
	if l.key.scope == "" && l.t.repo != "" {
		l.key.scope = "repository:" + l.t.repo + ":pull"
	}
	token, fresh, err := l.c.tokens.get(ctx, l.key, func() (token, error) { return l.c.fetchToken(ctx, l.t, l.key, l.cred) })
	if err != nil {
		return "", err
	}
	l.token, l.final = token, fresh
	return "Bearer " + token, nil
}

// verdict is what an origin last thought of a credential.
type verdict int

const (
	unknown verdict = iota
	accepted
	refused
)

// memory remembers, per scope and credential, the verdict and the challenge, so
// that the next request is right the first time. It only orders and shortens:
// forgetting costs requests, never correctness.
type memory struct {
	mu     sync.Mutex
	places map[place]remembered // guarded by mu
}

type place struct{ scope, cred string }

type remembered struct {
	verdict   verdict
	challenge *challenge
}

// maxRemembered bounds the memory; at the bound everything is forgotten.
const maxRemembered = 8192

func newMemory() *memory { return &memory{places: map[place]remembered{}} }

func (m *memory) update(scope, cred string, change func(*remembered)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := place{scope, cred}
	r, ok := m.places[key]
	if !ok && len(m.places) >= maxRemembered {
		clear(m.places)
	}
	change(&r)
	m.places[key] = r
}

func (m *memory) accept(scope, cred string) {
	m.update(scope, cred, func(r *remembered) { r.verdict = accepted })
}

func (m *memory) refuse(scope, cred string) {
	m.update(scope, cred, func(r *remembered) { r.verdict = refused })
}

func (m *memory) learn(scope, cred string, ch challenge) {
	m.update(scope, cred, func(r *remembered) { r.challenge = &ch })
}

func (m *memory) verdict(scope, cred string) verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.places[place{scope, cred}].verdict
}

func (m *memory) challenge(scope, cred string) (challenge, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ch := m.places[place{scope, cred}].challenge; ch != nil {
		return *ch, true
	}
	return challenge{}, false
}
