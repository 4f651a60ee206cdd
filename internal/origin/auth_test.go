package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// authority is a token server, and the check of its tokens.
type authority struct {
	user, password string // "" gives tokens to anybody
	expiresIn      int
	status         func(n int) int // of the n-th token request, 0 for the proper one
	queries        []string
	logins         []string

	mu     sync.Mutex
	issued int
	valid  map[string]bool
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.issued++
	a.queries = append(a.queries, r.URL.RawQuery)
	a.logins = append(a.logins, r.Header.Get("Authorization"))
	if a.status != nil {
		if s := a.status(a.issued); s != 0 {
			w.WriteHeader(s)
			return
		}
	}
	if user, password, _ := r.BasicAuth(); user != a.user || password != a.password {
		http.Error(w, "wrong password", http.StatusUnauthorized)
		return
	}
	value := "token" + strconv.Itoa(a.issued)
	if a.valid == nil {
		a.valid = map[string]bool{}
	}
	a.valid[value] = true
	_ = json.NewEncoder(w).Encode(map[string]any{"token": value, "expires_in": a.expiresIn})
}

func (a *authority) expireAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.valid)
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issued
}

// guard lets requests with a valid token pass to next, and sends the others to
// realm.
func (a *authority) guard(realm func() string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		a.mu.Lock()
		ok := a.valid[value]
		a.mu.Unlock()
		if !ok {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="reg",scope="repository:a/b:pull"`, realm()))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// tokenRegistry serves data to bearers of the authority's tokens, which it gives
// at /token.
func tokenRegistry(t *testing.T, a *authority, data []byte) (url string, seen *requests) {
	t.Helper()
	guarded := a.guard(func() string { return url + "/token" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serveFile(w, r, data, `"v"`)
	}))
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/token" {
			a.ServeHTTP(w, r)
			return
		}
		guarded.ServeHTTP(w, r)
	})
	url = srv.URL
	return url, seen
}

func TestTokenProtocol(t *testing.T) {
	data := content(100)
	for _, cred := range []Credential{{}, {Username: "u", Password: "p"}} {
		t.Run(cred.String(), func(t *testing.T) {
			a := &authority{user: cred.Username, password: cred.Password, expiresIn: 300}
			url, seen := tokenRegistry(t, a, data)
			now := time.Unix(1e9, 0)
			c, _ := newTestClient(t, Options{Now: func() time.Time { return now }})
			obj := Object{URL: BlobURL(url, "a/b", "sha256:00"), Credentials: []Credential{cred}}
			for range 3 {
				mustRead(t, mustOpen(t, c, obj, 0, -1), data)
			}
			equal(t, "tokens", a.issued, 1)
			equal(t, "query", a.queries[0], "scope=repository%3Aa%2Fb%3Apull&service=reg")
			equal(t, "requests", seen.count(), 5) // refused, token, three answers

			now = now.Add(271 * time.Second) // 270 s is 300 less a tenth
			mustRead(t, mustOpen(t, c, obj, 0, -1), data)
			equal(t, "tokens after their time", a.issued, 2)
			equal(t, "requests after their time", seen.count(), 7) // none refused
		})
	}
}

// Whoever has no credential gets the registry's own refusal: the challenge in it
// is how a client finds out where to log in.
func TestAnonymousIsToldTheChallenge(t *testing.T) {
	a := &authority{user: "u", password: "p"}
	url, _ := tokenRegistry(t, a, content(10))
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: BlobURL(url, "a/b", "sha256:00"), Credentials: []Credential{{}}}
	for i := range 3 {
		_, err := c.Head(t.Context(), obj)
		var answer *StatusError
		if !errors.As(err, &answer) || answer.Status != http.StatusUnauthorized || !strings.Contains(answer.Header.Get("Www-Authenticate"), url+"/token") {
			t.Errorf("request %d: %v", i, err)
		}
	}
}

// The registry's clock is ahead, or it lost its keys: a token that worked is
// refused before its time, in mid-read.
func TestTokenExpiresEarly(t *testing.T) {
	data := content(1000)
	a := &authority{user: "u", password: "p"}
	var url string
	cuts := 0
	guarded := a.guard(func() string { return url + "/token" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.expireAll()
		if cuts++; cuts == 1 {
			w = &cutWriter{w, 500}
		}
		serveFile(w, r, data, `"v"`)
	}))
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/token" {
			a.ServeHTTP(w, r)
			return
		}
		guarded.ServeHTTP(w, r)
	})
	url = srv.URL
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: BlobURL(url, "a/b", "sha256:00"), Credentials: []Credential{{Username: "u", Password: "p"}}}
	mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	equal(t, "tokens", a.count(), 2)
}

// A registry that refuses even fresh tokens is asked once per token, not for
// ever.
func TestFreshTokenRefused(t *testing.T) {
	a := &authority{}
	var url string
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/token" {
			a.ServeHTTP(w, r)
			a.expireAll()
			return
		}
		a.guard(func() string { return url + "/token" }, nil).ServeHTTP(w, r)
	})
	url = srv.URL
	c, _ := newTestClient(t, Options{})
	_, err := c.Open(t.Context(), Object{URL: url + "/v2/a/b/blobs/x"}, 0, -1)
	var se *StatusError
	if !errors.As(err, &se) || se.Status != 401 || !IsPermanent(err) {
		t.Errorf("%v, want 401", err)
	}
	equal(t, "requests", seen.count(), 3)
}

func TestOneTokenFetchAtATime(t *testing.T) {
	data := content(100)
	const readers = 20
	refusedAll := make(chan struct{})
	a := &authority{}
	var url string
	var mu sync.Mutex
	asked := 0
	guarded := a.guard(func() string { return url + "/token" }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serveFile(w, r, data, "")
	}))
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/token" {
			a.ServeHTTP(w, r)
			return
		}
		if r.Header.Get("Authorization") == "" {
			mu.Lock()
			if asked++; asked == readers {
				close(refusedAll)
			}
			mu.Unlock()
			// Nobody is refused before all have come, or the last would know the
			// challenge and not come.
			<-refusedAll
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+url+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		guarded.ServeHTTP(w, r)
	})
	url = srv.URL
	c, _ := newTestClient(t, Options{})
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			b, err := c.Open(t.Context(), Object{URL: url + "/v2/a/b/blobs/x"}, 0, -1)
			if err != nil {
				t.Error(err)
				return
			}
			_ = b.Close()
		})
	}
	wg.Wait()
	equal(t, "tokens", a.count(), 1)
	equal(t, "scope from the path", a.queries[0], "scope=repository%3Aa%2Fb%3Apull")
}

// A waiter does not fail because the request that fetches for it was given up.
func TestTokenFetchAbandoned(t *testing.T) {
	s := newTokenStore(time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := s.get(ctx, tokenKey{}, func() (token, error) {
			close(started)
			<-ctx.Done()
			return token{}, ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("leader: %v", err)
		}
	})
	<-started
	wg.Go(func() {
		value, _, err := s.get(t.Context(), tokenKey{}, func() (token, error) {
			return token{value: "x", expires: time.Now().Add(time.Hour)}, nil
		})
		if value != "x" || err != nil {
			t.Errorf("waiter: %q, %v", value, err)
		}
	})
	gone, stop := context.WithCancel(t.Context())
	stop()
	if _, _, err := s.get(gone, tokenKey{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("waiter whose own context ended: %v", err)
	}
	cancel()
	wg.Wait()
}

func TestTokenServerFailures(t *testing.T) {
	data := content(10)
	t.Run("temporary", func(t *testing.T) {
		a := &authority{status: func(n int) int { return []int{503, 429, 0}[n-1] }}
		url, _ := tokenRegistry(t, a, data)
		c, clock := newTestClient(t, Options{})
		mustRead(t, mustOpen(t, c, Object{URL: url + "/v2/a/b/blobs/x"}, 0, -1), data)
		equal(t, "waits", len(clock.slept()), 2)
	})
	t.Run("refused", func(t *testing.T) {
		a := &authority{user: "u", password: "p"}
		url, _ := tokenRegistry(t, a, data)
		c, _ := newTestClient(t, Options{})
		creds := []Credential{{Username: "u", Password: "hunter2"}}
		_, err := c.Open(t.Context(), Object{URL: url + "/v2/a/b/blobs/x", Credentials: creds}, 0, -1)
		var se *StatusError
		if !errors.As(err, &se) || se.Status != 401 || !strings.Contains(se.URL, "/token?") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want 401 of the token server", err)
		}
		creds = append(creds, Credential{Username: "u", Password: "p"})
		mustRead(t, mustOpen(t, c, Object{URL: url + "/v2/a/b/blobs/x", Credentials: creds}, 0, -1), data)
	})
	for name, body := range map[string]string{"no json": "hunter2", "no token": "{}", "bad token": `{"token":"a\nb hunter2"}`} {
		t.Run(name, func(t *testing.T) {
			var url string
			srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
				if r.URL.Path == "/token" {
					_, _ = w.Write([]byte(body))
					return
				}
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+url+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
			url = srv.URL
			c, _ := newTestClient(t, Options{})
			_, err := c.Open(t.Context(), Object{URL: url}, 0, -1)
			if !errors.Is(err, ErrBadAnswer) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v, want ErrBadAnswer", err)
			}
		})
	}
}

// A plain HTTP realm on another host gets no password, and an anonymous client
// may still use it.
func TestUnsafeRealm(t *testing.T) {
	a := &authority{}
	realm, realmSeen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { a.ServeHTTP(w, r) })
	other := strings.Replace(realm.URL, "127.0.0.1", "localhost", 1)
	guarded := a.guard(func() string { return other }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serveFile(w, r, content(10), "")
	}))
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { guarded.ServeHTTP(w, r) })
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: srv.URL, Credentials: []Credential{{Username: "u", Password: "hunter2"}}}
	if _, err := c.Open(t.Context(), obj, 0, -1); !errors.Is(err, errUnsafeRealm) || !IsPermanent(err) {
		t.Errorf("%v, want errUnsafeRealm", err)
	}
	equal(t, "requests to the realm", realmSeen.count(), 0)

	obj.Credentials = append(obj.Credentials, Credential{})
	mustRead(t, mustOpen(t, c, obj, 0, -1), content(10))
	equal(t, "logins", join(a.logins), "")

	for _, bad := range []string{"file:///etc/passwd", "/token", "http://u:p@127.0.0.1/"} {
		srv, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+bad+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
		if _, err := c.Open(t.Context(), Object{URL: srv.URL}, 0, -1); err == nil || !IsPermanent(err) {
			t.Errorf("realm %s: %v", bad, err)
		}
	}
}

func TestBasic(t *testing.T) {
	data := content(10)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		serveFile(w, r, data, "")
	})
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: srv.URL, Credentials: []Credential{{Username: "u", Password: "wrong"}, {Username: "u", Password: "p"}}}
	mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	equal(t, "requests", seen.count(), 4)
	mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	equal(t, "requests once known", seen.count(), 5)
	if _, err := c.Head(t.Context(), Object{URL: srv.URL}); !IsPermanent(err) {
		t.Errorf("anonymous: %v", err)
	}
}

// A verbatim token that expires in mid-read is replaced by another waiter's.
func TestNextCredentialTakesOver(t *testing.T) {
	data := content(1000)
	var mu sync.Mutex
	allowed := "Bearer one"
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") != allowed {
			w.WriteHeader(map[bool]int{true: 401, false: 403}[n%2 == 0])
			return
		}
		if allowed == "Bearer one" {
			allowed = "Bearer three"
			w = &cutWriter{w, 500}
		}
		serveFile(w, r, data, "")
	})
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: srv.URL, Credentials: []Credential{{Authorization: "Bearer zero"}, {Authorization: "Bearer one"}, {Authorization: "Bearer two"}, {Authorization: "Bearer three"}}}
	mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	// What was refused is tried last.
	equal(t, "Authorization", join(seen.headers("Authorization")), "Bearer zero|Bearer one|Bearer one|Bearer two|Bearer three")
	mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	equal(t, "requests once known", seen.count(), 6)
}

type keychainFunc func(host string) (Credential, bool, error)

func (f keychainFunc) Resolve(_ context.Context, host string) (Credential, bool, error) {
	return f(host)
}

func TestKeychainAfterAnonymous(t *testing.T) {
	data := content(10)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Header.Get("Authorization") != "Bearer k" && r.URL.Path != "/public" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		serveFile(w, r, data, "")
	})
	var hosts []string
	answer := func() (Credential, bool, error) { return Credential{Authorization: "Bearer k"}, true, nil }
	c, _ := newTestClient(t, Options{Keychain: keychainFunc(func(host string) (Credential, bool, error) {
		hosts = append(hosts, host)
		return answer()
	})})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL + "/public"}, 0, -1), data)
	equal(t, "hosts asked for public content", len(hosts), 0)
	for range 2 {
		mustRead(t, mustOpen(t, c, Object{URL: srv.URL + "/x"}, 0, -1), data)
	}
	equal(t, "hosts", join(hosts), strings.TrimPrefix(srv.URL, "http://")+"|"+strings.TrimPrefix(srv.URL, "http://"))
	equal(t, "Authorization", join(seen.headers("Authorization")), "||Bearer k|Bearer k")

	// Never instead of credentials that were given.
	_, err := c.Open(t.Context(), Object{URL: srv.URL + "/x", Credentials: []Credential{{}}}, 0, -1)
	var se *StatusError
	if !errors.As(err, &se) || se.Status != 401 {
		t.Errorf("explicitly anonymous: %v, want 401", err)
	}

	broken := errors.New("secret store is down")
	answer = func() (Credential, bool, error) { return Credential{}, false, broken }
	if _, err = c.Open(t.Context(), Object{URL: srv.URL + "/x"}, 0, -1); !errors.Is(err, broken) {
		t.Errorf("%v, want the keychain's error", err)
	}
	answer = func() (Credential, bool, error) { return Credential{}, false, nil }
	if _, err = c.Open(t.Context(), Object{URL: srv.URL + "/x"}, 0, -1); !errors.As(err, &se) || se.Status != 401 {
		t.Errorf("no credential: %v, want 401", err)
	}
}

func TestCredentialIsNeverPrinted(t *testing.T) {
	creds := []Credential{{Authorization: "Bearer hunter2"}, {Username: "hunter2", Password: "hunter2"}}
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	for _, cred := range creds {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+" ", cred)
			fmt.Fprintf(&out, verb+" ", &cred)
			fmt.Fprintf(&out, verb+" ", Object{Credentials: []Credential{cred}})
		}
		log.Info("x", "cred", cred, "object", Object{Credentials: []Credential{cred}})
		fmt.Fprint(&out, cred.Key())
	}
	if s := out.String(); strings.Contains(s, "hunter2") || strings.Contains(s, "68756e74657232") {
		t.Errorf("a secret in: %s", s)
	}
}

func TestCredentialKey(t *testing.T) {
	different := []Credential{{}, {Authorization: "a"}, {Username: "a"}, {Password: "a"}, {Username: "ab", Password: "c"}, {Username: "a", Password: "bc"}}
	seen := map[string]Credential{}
	for _, cred := range different {
		if other, dup := seen[cred.Key()]; dup {
			t.Errorf("equal keys of %+v and %+v", cred, other)
		}
		seen[cred.Key()] = cred
		equal(t, "second key", cred.Key(), cred.Key())
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := newMemory()
	for i := range maxRemembered + 10 {
		m.accept("scope", strconv.Itoa(i))
	}
	if len(m.places) > maxRemembered {
		t.Errorf("%d places", len(m.places))
	}
	s := newTokenStore(time.Now)
	for i := range maxTokens + 10 {
		_, _, _ = s.get(t.Context(), tokenKey{realm: strconv.Itoa(i)}, func() (token, error) {
			return token{value: "x", expires: time.Now().Add(time.Hour)}, nil
		})
	}
	if len(s.held) > maxTokens {
		t.Errorf("%d tokens", len(s.held))
	}
}

func TestTokenLife(t *testing.T) {
	for in, want := range map[int64]time.Duration{
		0: 54 * time.Second, -5: 54 * time.Second, 10: 9 * time.Second, 300: 270 * time.Second, 3600: 3570 * time.Second,
		1 << 60: 24*time.Hour - 30*time.Second,
	} {
		equal(t, strconv.FormatInt(in, 10), tokenLife(in), want)
	}
}
