package image

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// tokenGate lets only requests with its present token through.
type tokenGate struct {
	mu      sync.Mutex
	current int
	scopes  [][]string // asked for, by request
}

func (g *tokenGate) admit(w http.ResponseWriter, r *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.URL.Path == "/token" {
		user, password, _ := r.BasicAuth()
		if user != "ann" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return false
		}
		g.scopes = append(g.scopes, r.URL.Query()["scope"])
		_, _ = fmt.Fprintf(w, `{"token":"t%d"}`, g.current)
		return false
	}
	if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", g.current) {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

func (g *tokenGate) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current++
}

type password string

func (p password) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{Username: "ann", Password: string(p)}), nil
}

func TestTokens(t *testing.T) {
	s := newUploadServer(t)
	gate := &tokenGate{}
	var once sync.Once
	front := newRegistry(t)
	front.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch && len(s.seen("PATCH")) == 2 {
			once.Do(gate.expire)
		}
		if gate.admit(w, r) {
			s.ServeHTTP(w, r)
		}
		return true
	})
	o := pushOptions()
	o.Keychain = password("secret")
	o.MountFrom = []string{"team/base"}
	target := openTarget(t, front.ref(t, "team/app"), o)
	upload5(t, s, target, 1)
	if s.taken != 4*piece+100 {
		t.Errorf("%d bytes were sent: %q", s.taken, s.seen(""))
	}
	want := []string{"repository:team/app:push,pull", "repository:team/base:pull"}
	gate.mu.Lock()
	defer gate.mu.Unlock()
	if len(gate.scopes) < 2 {
		t.Errorf("%d tokens were fetched", len(gate.scopes))
	}
	for _, scopes := range gate.scopes {
		slices.Sort(scopes)
		slices.Sort(want)
		if !slices.Equal(scopes, want) {
			t.Errorf("scopes %q, want %q", scopes, want)
		}
	}
}

func TestWrongPassword(t *testing.T) {
	gate := &tokenGate{}
	front := newRegistry(t)
	front.setFault(func(w http.ResponseWriter, r *http.Request) bool { return !gate.admit(w, r) })
	o := testOptions()
	o.Keychain = password("wrong")
	_, serr := Open(t.Context(), front.ref(t, "a"), o)
	_, terr := OpenTarget(t.Context(), front.ref(t, "a"), o)
	for _, err := range []error{serr, terr} {
		if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "docker login") || strings.Contains(err.Error(), "wrong") {
			t.Errorf("error %v", err)
		}
	}
	if got := front.requests("/token"); len(got) != 2 {
		t.Errorf("%d tries", len(got))
	}
}

// TestPasswordStaysOffPlainHTTP has a private address, for which the library by
// itself would fall back to plain HTTP.
func TestPasswordStaysOffPlainHTTP(t *testing.T) {
	o := testOptions()
	o.Keychain = password("secret")
	asked := make(chan string, 16)
	o.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		asked <- r.URL.Scheme
		return nil, errors.New("unreachable")
	})
	if _, err := Open(t.Context(), parse(t, "10.1.2.3:5000/a"), o); err == nil {
		t.Fatal("no error")
	}
	close(asked)
	for scheme := range asked {
		if scheme != "https" {
			t.Errorf("asked by %s", scheme)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:5000": true, "127.3.2.1:5000": true, "localhost": true, "localhost:5000": true,
		"[::1]:5000": true, "[::1]": true, "10.0.0.1:5000": false, "ghcr.io": false, "localhost.example.com": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	for _, host := range []string{"localhost", "127.3.2.1:5000"} {
		o := testOptions()
		var scheme string
		o.MaxAttempts = 1
		o.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			scheme = r.URL.Scheme
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("")), Header: http.Header{}, Request: r}, nil
		})
		if _, err := Open(t.Context(), parse(t, host+"/a"), o); err != nil || scheme != "http" {
			t.Errorf("%s: asked by %q, %v", host, scheme, err)
		}
	}
}
