package authority_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/authority"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/upstream"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// exchanger asks the registry like a supernode, or is unreachable.
type exchanger struct {
	mu    sync.Mutex
	up    bool
	asked []*apiv1.ExchangeRequest
}

func (e *exchanger) Exchange(ctx context.Context, r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.up {
		return nil, swarm.ErrUnreachable
	}
	e.asked = append(e.asked, r)
	req, err := http.NewRequestWithContext(ctx, r.Method, r.Url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = wire.Header(r.Headers)
	rec := httptest.NewRecorder()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if _, err := rec.Body.ReadFrom(resp.Body); err != nil {
		return nil, err
	}
	return &apiv1.ExchangeResponse{
		Status:  int32(resp.StatusCode),
		Headers: wire.FromHeader(resp.Header), Body: rec.Body.Bytes(),
	}, nil
}

// keychain has one credential, or none.
type keychain struct {
	cred origin.Credential
	err  error
}

func (k keychain) Resolve(context.Context, string) (origin.Credential, bool, error) {
	return k.cred, k.cred != (origin.Credential{}), k.err
}

// site is an authority before a registry.
type site struct {
	*authority.Authority
	t        *testing.T
	reg      *registrytest.Registry
	grants   *grant.Store
	exchange *exchanger
	now      time.Time
	repo     authority.Repository
}

func newSite(t *testing.T, keys origin.Keychain, base string) *site {
	t.Helper()
	s := &site{t: t, reg: registrytest.New(t), exchange: &exchanger{up: true}, now: time.Unix(1e9, 0)}
	if base == "" {
		base = s.reg.URL
	}
	list, err := upstream.Parse([]string{"reg.test=" + base})
	if err != nil {
		t.Fatal(err)
	}
	if s.grants, err = grant.Open(t.TempDir(), time.Hour, func() time.Time { return s.now }); err != nil {
		t.Fatal(err)
	}
	s.Authority = authority.New(authority.Options{
		Registries: list, Grants: s.grants, Exchange: s.exchange, Keychain: keys, Now: func() time.Time { return s.now },
		Origin: origin.Options{Backoff: func(int) time.Duration { return time.Millisecond }}, YesTTL: time.Minute, HeldTTL: time.Hour,
	})
	if s.repo, err = s.Repository("reg.test", "org/app"); err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	token    = origin.Credential{Authorization: "Bearer token"}
	other    = origin.Credential{Authorization: "Bearer other"}
	robot    = origin.Credential{Username: "robot", Password: "secret"}
	nobody   = origin.Credential{}
	errOther = errors.New("something else")
)

func refused(status int) error { return &engine.Failure{Status: status, Message: fmt.Sprint(status)} }

// tried returns what Try tries when the answers are errs, and what it returns.
func (s *site) tried(errs map[origin.Credential]error) (list []origin.Credential, err error) {
	err = s.Try(s.t.Context(), s.repo, "", func(at authority.Attempt) error {
		list = append(list, at.Credential)
		return errs[at.Credential]
	})
	return list, err
}

func TestOrderOfCredentials(t *testing.T) {
	all := func(status int) map[origin.Credential]error {
		return map[origin.Credential]error{token: refused(status), robot: refused(status), nobody: refused(status)}
	}
	for _, tt := range []struct {
		name string
		keys origin.Keychain
		hold bool
		errs map[origin.Credential]error
		want []origin.Credential
		err  string
	}{
		{"nothing is known", nil, false, nil, []origin.Credential{nobody}, ""},
		{"the client's first", keychain{cred: robot}, true, nil, []origin.Credential{token}, ""},
		{"then the configured one", keychain{cred: robot}, true, map[origin.Credential]error{token: refused(401)}, []origin.Credential{token, robot}, ""},
		{"then none", keychain{cred: robot}, true, map[origin.Credential]error{token: refused(401), robot: refused(403)}, []origin.Credential{token, robot, nobody}, ""},
		{"all are refused", keychain{cred: robot}, true, all(401), []origin.Credential{token, robot, nobody}, "401"},
		{"who is not let in may be told that there is nothing", keychain{cred: robot}, false, all(404), []origin.Credential{robot, nobody}, "404"},
		{"who was let in is told the truth", keychain{cred: robot}, true, all(404), []origin.Credential{token}, "404"},
		{"trouble is no refusal", keychain{cred: robot}, false, map[origin.Credential]error{robot: errOther}, []origin.Credential{robot}, "something else"},
		{"a keychain that cannot be read is told of", keychain{err: errOther}, false, all(401), []origin.Credential{nobody}, "something else"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, tt.keys, "")
			if tt.hold {
				s.Accepted(s.repo, token)
			}
			got, err := s.tried(tt.errs)
			if !slices.Equal(got, tt.want) {
				t.Errorf("tried %v, want %v", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestHeldCredentialEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*site)
		want []origin.Credential
	}{
		{"never", func(*site) {}, []origin.Credential{token}},
		{"when it is refused", func(s *site) { s.Refused(s.repo, token) }, []origin.Credential{nobody}},
		{"when it is refused to the node", func(s *site) {
			_, _ = s.tried(map[origin.Credential]error{token: refused(401)})
		}, []origin.Credential{nobody}},
		{"not when another is refused", func(s *site) { s.Refused(s.repo, other) }, []origin.Credential{token}},
		{"when a later one is accepted", func(s *site) { s.Accepted(s.repo, other) }, []origin.Credential{other}},
		{"not when none is accepted", func(s *site) { s.Accepted(s.repo, nobody) }, []origin.Credential{token}},
		{"after its time", func(s *site) { s.now = s.now.Add(time.Hour) }, []origin.Credential{nobody}},
		{"not for another repository", func(s *site) { s.repo.Name = "org/other" }, []origin.Credential{nobody}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, nil, "")
			s.Accepted(s.repo, token)
			tt.do(s)
			if got, _ := s.tried(nil); !slices.Equal(got, tt.want) {
				t.Errorf("tried %v, want %v", got, tt.want)
			}
		})
	}
}

func TestWhatSettlesTheRightToRead(t *testing.T) {
	s := newSite(t, nil, "")
	layer := registrytest.Digest([]byte("layer"))
	body, digest := s.reg.Manifest("org/app", "v1", layer)
	settled := func() (yes bool) {
		_ = s.Try(t.Context(), s.repo, task.ID(layer), func(at authority.Attempt) error {
			yes = at.Settled
			return nil
		})
		return yes
	}
	if settled() {
		t.Error("nobody has said so")
	}
	s.Accepted(s.repo, token)
	if !settled() {
		t.Error("the registry has said so")
	}
	s.now = s.now.Add(2 * time.Minute)
	if settled() {
		t.Error("the registry has said so long ago")
	}
	err := s.grants.Add(grant.Manifest{Registry: "reg.test", Repo: "org/app", Digest: digest, Body: body}, grant.NodeKey)
	if err != nil {
		t.Fatal(err)
	}
	if !settled() {
		t.Error("there is a grant")
	}
	s.repo.Name = "org/other"
	if settled() {
		t.Error("the grant is for another repository")
	}
}

func TestNotAllowed(t *testing.T) {
	s := newSite(t, nil, "")
	for _, name := range []string{"", "org/../other", "..", "a/", "/a", "a//b", "a?b", "a b", "A", "a%2fb", "a#b", strings.Repeat("a", 256)} {
		if _, err := s.Repository("reg.test", name); !errors.Is(err, authority.ErrInvalid) {
			t.Errorf("repository %q: %v", name, err)
		}
	}
	if _, err := s.Repository("reg.test", "org/blobs/app-1.x__y"); err != nil {
		t.Error(err)
	}
	if _, err := s.Repository("evil.test", "org/app"); !errors.Is(err, authority.ErrNotAllowed) || !strings.Contains(err.Error(), "--allow-registry evil.test") {
		t.Errorf("%v", err)
	}
}

func (s *site) ask(method, path string) authority.Answer {
	s.t.Helper()
	a, err := s.Ask(s.t.Context(), s.repo, method, path, http.Header{"Accept": {"application/json"}, "Authorization": {"Bearer mine"}})
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func TestAsk(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(fmt.Sprint("through a supernode ", up), func(t *testing.T) {
			s := newSite(t, keychain{cred: robot}, "")
			s.exchange.up = up
			body, digest := s.reg.Manifest("org/app", "v1")
			s.reg.Allow("org/app", "Basic cm9ib3Q6c2VjcmV0", token.Authorization)
			a := s.ask(http.MethodGet, "/v2/org/app/manifests/v1")
			if a.Status != 200 || string(a.Body) != string(body) || a.Header.Get("Docker-Content-Digest") != digest || a.Credential != robot {
				t.Errorf("with the configured credential: %+v", a)
			}
			s.Accepted(s.repo, token)
			a = s.ask(http.MethodHead, "/v2/org/app/manifests/v1")
			if a.Status != 200 || a.Header.Get("Docker-Content-Digest") != digest || a.Credential != token {
				t.Errorf("HEAD with the client's: %+v", a)
			}
			if a := s.ask(http.MethodGet, "/v2/org/app/manifests/v2"); a.Status != 404 || a.Message == "" {
				t.Errorf("of what is not there: %+v", a)
			}
			s.reg.Allow("org/app")
			if a := s.ask(http.MethodGet, "/v2/org/app/manifests/v1"); a.Status != 401 {
				t.Errorf("without the right: %+v", a)
			}
			s.reg.SetDown(503)
			if a, err := s.Ask(t.Context(), s.repo, http.MethodGet, "/v2/org/app/manifests/v1", nil); err == nil {
				t.Errorf("with the registry down: %+v", a)
			}
			for _, h := range s.reg.Hits("", "") {
				if h.Authorization == "Bearer mine" || h.Range != "" {
					t.Errorf("the registry was asked with the asker's header: %+v", h)
				}
			}
			if n := len(s.exchange.asked); (n > 0) != up {
				t.Errorf("the supernode was asked %d times", n)
			}
		})
	}
}

// TestAskLogsIn answers the challenge of a registry with a token server.
func TestAskLogsIn(t *testing.T) {
	var fetched int
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if user, _, ok := r.BasicAuth(); !ok || user != robot.Username || r.URL.Query().Get("scope") != "repository:org/app:pull" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fetched++
			_, _ = fmt.Fprint(w, `{"token":"fresh","expires_in":300}`)
		case r.Header.Get("Authorization") != "Bearer fresh":
			w.Header().Set("Www-Authenticate", `Bearer realm="`+srv.URL+`/token",service="reg.test"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("Link", `</v2/next>; rel="next"`)
			_, _ = fmt.Fprint(w, "referrers")
		}
	}))
	defer srv.Close()
	s := newSite(t, keychain{cred: robot}, srv.URL)
	for range 3 {
		a := s.ask(http.MethodGet, "/v2/org/app/referrers/sha256:"+strings.Repeat("0", 64))
		if a.Status != 200 || string(a.Body) != "referrers" || a.Header.Get("Link") == "" {
			t.Fatalf("%+v", a)
		}
	}
	if fetched != 1 {
		t.Errorf("%d tokens were fetched", fetched)
	}
	for _, r := range s.exchange.asked {
		if strings.Contains(r.Url, "/token") || strings.Contains(wire.Header(r.Headers).Get("Authorization"), "Basic") {
			t.Error("the password has gone to the supernode")
		}
	}
}
