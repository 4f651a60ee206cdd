package origin

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// secretHeaders must not reach another origin.
var secretHeaders = []string{"Authorization", "Cookie", "X-Api-Key", "Proxy-Authorization"}

func TestRedirectLeavesSecretsBehind(t *testing.T) {
	data := content(1000)
	cdn, cdnSeen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			w = &cutWriter{w, 300}
		}
		serveFile(w, r, data, `"v"`)
	})
	// Another port of the same host is another origin.
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/start" {
			http.Redirect(w, r, "/next", http.StatusFound) // same origin: keeps them
			return
		}
		http.Redirect(w, r, strings.Replace(cdn.URL, "http://", "http://user:pw@", 1)+"/blob?sig=1", http.StatusTemporaryRedirect)
	})
	c, _ := newTestClient(t, Options{})
	obj := Object{
		URL:         srv.URL + "/start",
		Credentials: []Credential{{Authorization: "Bearer hunter2"}},
		Header:      http.Header{"Cookie": {"hunter2"}, "X-Api-Key": {"hunter2"}},
	}
	mustRead(t, mustOpen(t, c, obj, 100, -1), data[100:])
	equal(t, "Range", join(cdnSeen.headers("Range")), "bytes=100-|bytes=400-999")
	equal(t, "If-Range", join(cdnSeen.headers("If-Range")), `|"v"`)
	for _, name := range secretHeaders {
		if got := join(cdnSeen.headers(name)); got != "|" {
			t.Errorf("%s reached the other host: %s", name, got)
		}
	}
	for i, value := range seen.headers("Authorization") {
		equal(t, "Authorization at the origin", value, "Bearer hunter2")
		equal(t, "X-Api-Key at the origin", seen.headers("X-Api-Key")[i], "hunter2")
	}
	equal(t, "requests", seen.count(), 4) // each attempt begins at the object's own URL
}

func TestDoRedirectLeavesSecretsBehind(t *testing.T) {
	// There and back again: what was left behind does not return.
	var home string
	away, awaySeen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		http.Redirect(w, r, home+"/back", http.StatusFound)
	})
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			http.Redirect(w, r, away.URL, http.StatusSeeOther)
		}
	})
	home = srv.URL
	c, _ := newTestClient(t, Options{})
	h := http.Header{"Authorization": {"Basic hunter2"}, "Cookie": {"a=hunter2"}, "Accept": {"x/y"}}
	resp, err := c.Do(t.Context(), http.MethodGet, srv.URL, h)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	equal(t, "Authorization", join(seen.headers("Authorization")), "Basic hunter2|")
	equal(t, "Authorization away", join(awaySeen.headers("Authorization")), "")
	equal(t, "Cookie away", join(awaySeen.headers("Cookie")), "")
	equal(t, "Accept away", join(awaySeen.headers("Accept")), "x/y")
}

func TestRedirectFromTLSToPlain(t *testing.T) {
	plain, plainSeen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveFile(w, r, content(10), "") })
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL, http.StatusFound)
	}))
	defer srv.Close()
	c, _ := newTestClient(t, Options{Transport: srv.Client().Transport})
	obj := Object{URL: srv.URL, Credentials: []Credential{{Authorization: "Bearer hunter2"}}}
	mustRead(t, mustOpen(t, c, obj, 0, -1), content(10))
	equal(t, "Authorization", join(plainSeen.headers("Authorization")), "")
}

func TestRedirectNotFollowed(t *testing.T) {
	for name, location := range map[string]string{
		"loop": "/", "file": "file:///etc/passwd", "data": "data:,x", "no host": "http:///x", "malformed": "http://a/%zz",
	} {
		t.Run(name, func(t *testing.T) {
			srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
				w.Header().Set("Location", location)
				w.WriteHeader(http.StatusFound)
			})
			c, _ := newTestClient(t, Options{})
			_, err := c.Open(t.Context(), Object{URL: srv.URL}, 0, -1)
			if !errors.Is(err, ErrRedirect) || !IsPermanent(err) {
				t.Errorf("%v, want ErrRedirect", err)
			}
			want := 1
			if name == "loop" {
				want = 1 + maxRedirects
			}
			equal(t, "requests", seen.count(), want)
		})
	}
}

// A signed URL that has expired is replaced by asking the registry again, and
// the refusal is not held against the credential.
func TestExpiredSignedURL(t *testing.T) {
	data := content(100)
	cdn, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Query().Get("sig") != "2" {
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
		serveFile(w, r, data, "")
	})
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		http.Redirect(w, r, cdn.URL+"?sig="+string(rune('0'+n)), http.StatusFound)
	})
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: srv.URL, Credentials: []Credential{{Authorization: "first"}, {Authorization: "second"}}}
	mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	equal(t, "Authorization", join(seen.headers("Authorization")), "first|first")
}

func TestHeadOfURLSignedForGet(t *testing.T) {
	data := content(100)
	cdn, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		serveFile(w, r, data, "")
	})
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { http.Redirect(w, r, cdn.URL, http.StatusFound) })
	c, clock := newTestClient(t, Options{})
	info, err := c.Head(t.Context(), Object{URL: srv.URL})
	if err != nil || info.Length != 100 {
		t.Errorf("%+v, %v", info, err)
	}
	equal(t, "waits", len(clock.slept()), 0)
}

func TestOriginOf(t *testing.T) {
	for raw, want := range map[string]string{
		"https://Example.test/x":     "https://example.test:443",
		"HTTPS://example.test:443/":  "https://example.test:443",
		"http://example.test":        "http://example.test:80",
		"http://[::1]:5000/v2/":      "http://[::1]:5000",
		"https://sub.example.test/x": "https://sub.example.test:443",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, raw, originOf(u), want)
	}
}
