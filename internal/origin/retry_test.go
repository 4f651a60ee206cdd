package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestStorm(t *testing.T) {
	data := content(100)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	storm := []struct {
		status     int
		retryAfter string
	}{
		{503, ""}, {429, "7"}, {500, "0"}, {429, now.Add(9 * time.Second).Format(http.TimeFormat)},
		{502, "100000"}, {504, "soon"}, {408, ""},
	}
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n > len(storm) {
			serveFile(w, r, data, "")
			return
		}
		if s := storm[n-1]; s.retryAfter != "" {
			w.Header().Set("Retry-After", s.retryAfter)
		}
		w.WriteHeader(storm[n-1].status)
	})
	c, clock := newTestClient(t, Options{
		Now:           func() time.Time { return now },
		Backoff:       func(n int) time.Duration { return time.Duration(n) * time.Millisecond },
		MaxRetryAfter: time.Minute,
	})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	equal(t, "waits", fmt.Sprint(clock.slept()), "[1ms 7s 3ms 9s 1m0s 6ms 7ms]")
}

func TestStormDuringResume(t *testing.T) {
	data := content(1000)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case n == 1:
			serveFile(&cutWriter{w, 600}, r, data, `"v"`)
		case n < 5:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			serveFile(w, r, data, `"v"`)
		}
	})
	c, _ := newTestClient(t, Options{MaxAttempts: 5})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	equal(t, "requests", seen.count(), 5)
}

func TestStormWithoutEnd(t *testing.T) {
	srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\ndown"},{"message":"please"}]}`)
	})
	c, clock := newTestClient(t, Options{})
	for name, call := range map[string]func() error{
		"Open": func() error { _, err := c.Open(t.Context(), Object{URL: srv.URL}, 0, -1); return err },
		"Head": func() error { _, err := c.Head(t.Context(), Object{URL: srv.URL}); return err },
	} {
		before := seen.count()
		err := call()
		var se *StatusError
		if !errors.As(err, &se) || se.Status != 429 || !se.Temporary() || IsPermanent(err) {
			t.Errorf("%s: %v, want a temporary 429", name, err)
		}
		if name == "Open" {
			equal(t, "Message", se.Message, "TOOMANYREQUESTS: slow down; please")
		}
		equal(t, name+" requests", seen.count()-before, 8)
	}
	for i, d := range clock.slept() {
		most := min(100*time.Millisecond<<(i%7), 10*time.Second)
		if d < most/2 || d > most {
			t.Errorf("wait %d is %v, want within [%v, %v]", i, d, most/2, most)
		}
	}
}

func TestContextEndsWait(t *testing.T) {
	srv, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusServiceUnavailable) })
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := newTestClient(t, Options{After: func(time.Duration) <-chan time.Time {
		cancel()
		return nil
	}})
	_, err := c.Open(ctx, Object{URL: srv.URL}, 0, -1)
	var se *StatusError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &se) {
		t.Errorf("%v, want both reasons", err)
	}
}

func TestConnectionRefused(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	c, clock := newTestClient(t, Options{MaxAttempts: 3})
	_, err := c.Open(t.Context(), Object{URL: srv.URL + "/x?sig=hunter2"}, 0, -1)
	if err == nil || IsPermanent(err) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
	equal(t, "waits", len(clock.slept()), 2)
}

func TestPermanentFailures(t *testing.T) {
	srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		http.Error(w, "no such thing", http.StatusNotFound)
	})
	c, _ := newTestClient(t, Options{})
	_, err := c.Open(t.Context(), Object{URL: srv.URL + "/x?ns=docker.io&sig=hunter2"}, 0, -1)
	equal(t, "error", err.Error(), "GET "+srv.URL+"/x?ns=docker.io&sig=REDACTED: 404 Not Found: no such thing")
	equal(t, "requests", seen.count(), 1)

	tlsSrv := httptest.NewUnstartedServer(http.NotFoundHandler())
	tlsSrv.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsSrv.StartTLS()
	defer tlsSrv.Close()
	_, err = c.Open(t.Context(), Object{URL: tlsSrv.URL}, 0, -1)
	var cert *tls.CertificateVerificationError
	if !errors.As(err, &cert) || !IsPermanent(err) {
		t.Errorf("unknown certificate: %v", err)
	}
}

func TestIsPermanent(t *testing.T) {
	tests := []struct {
		err  error
		want bool
	}{
		{nil, false}, {io.ErrUnexpectedEOF, false}, {context.Canceled, false}, {ErrShort, false}, {ErrStalled, false},
		{ErrChanged, true}, {fmt.Errorf("x: %w", ErrBadAnswer), true}, {ErrRedirect, true}, {permanent(io.EOF), true},
		{&StatusError{Status: 404}, true}, {&StatusError{Status: 501}, true}, {&StatusError{Status: 503}, false},
		{&StatusError{Status: 403}, true}, {&StatusError{Status: 403, Redirected: true}, false},
	}
	for _, tt := range tests {
		if got := IsPermanent(tt.err); got != tt.want {
			t.Errorf("IsPermanent(%v) = %v", tt.err, got)
		}
	}
}

func TestHead(t *testing.T) {
	data := content(1234)
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		serveFile(w, r, data, `"v"`)
	})
	c, _ := newTestClient(t, Options{})
	want := Info{Length: 1234, ETag: `"v"`, ContentType: "application/octet-stream", Ranges: true}
	info, err := c.Head(t.Context(), Object{URL: srv.URL})
	if err != nil || info != want {
		t.Errorf("%+v, %v", info, err)
	}

	for _, ranges := range []bool{true, false} {
		noHead, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			switch {
			case r.Method == http.MethodHead:
				w.WriteHeader(http.StatusMethodNotAllowed)
			case ranges:
				serveFile(w, r, data, `"v"`)
			default:
				unranged(w, data, len(data))
			}
		})
		info, err = c.Head(t.Context(), Object{URL: noHead.URL})
		if err != nil || info.Length != 1234 || info.Ranges != ranges {
			t.Errorf("without HEAD: %+v, %v", info, err)
		}
	}
}

func TestObserve(t *testing.T) {
	data := content(1000)
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if n == 2 {
			w = &cutWriter{w, 400}
		}
		serveFile(w, r, data, "")
	})
	var seen []string
	c, _ := newTestClient(t, Options{Observe: func(kind string, status int, n int64) {
		seen = append(seen, fmt.Sprint(kind, " ", status, " ", n))
	}})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	if _, err := c.Head(t.Context(), Object{URL: srv.URL}); err != nil {
		t.Error(err)
	}
	resp, err := c.Do(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, resp.Body, data)
	_ = resp.Body.Close()
	equal(t, "observed", join(seen), "blob 503 0|blob 206 400|blob 206 600|head 200 0|manifest 200 1000")
}

func TestDo(t *testing.T) {
	challenge := `Bearer realm="https://auth.test/token",service="r"`
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", challenge)
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "manifest")
	})
	c, _ := newTestClient(t, Options{})
	h := http.Header{
		"Accept": {"a", "b"}, "Authorization": {"Bearer bad"}, "Connection": {"X-Hop, close"}, "X-Hop": {"1"},
		"Transfer-Encoding": {"chunked"}, "Accept-Encoding": {"gzip"}, "Host": {"other"}, "Range": {"bytes=0-3"}, "User-Agent": {"containerd/2"},
	}
	resp, err := c.Do(t.Context(), http.MethodGet, srv.URL+"/v2/a/manifests/latest", h)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	equal(t, "status", resp.StatusCode, 401)
	equal(t, "challenge", resp.Header.Get("WWW-Authenticate"), challenge)
	equal(t, "requests", seen.count(), 1)
	got := seen.all[0].Header
	for name, want := range map[string]string{
		"Accept": "a", "Authorization": "Bearer bad", "X-Hop": "", "Accept-Encoding": "identity", "Range": "bytes=0-3", "User-Agent": "containerd/2",
	} {
		equal(t, name, got.Get(name), want)
	}
	equal(t, "caller's header", h.Get("Accept-Encoding"), "gzip")

	h.Set("Authorization", "Bearer good")
	resp, err = c.Do(t.Context(), http.MethodGet, srv.URL+"/v2/a/manifests/latest", h)
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, resp.Body, []byte("manifest"))
	_ = resp.Body.Close()
}

func TestDoRetries(t *testing.T) {
	tests := []struct {
		method, retryAfter string
		status, requests   int
	}{
		{"GET", "", 503, 3}, {"HEAD", "1", 429, 3}, {"GET", "3", 429, 1}, {"POST", "", 503, 1}, {"GET", "", 404, 1}, {"GET", "", 301, 1},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.method, tt.status, tt.retryAfter), func(t *testing.T) {
			srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
				if tt.retryAfter != "" {
					w.Header().Set("Retry-After", tt.retryAfter)
				}
				w.WriteHeader(tt.status)
			})
			c, _ := newTestClient(t, Options{})
			resp, err := c.Do(t.Context(), tt.method, srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			equal(t, "status", resp.StatusCode, tt.status)
			equal(t, "requests", seen.count(), tt.requests)
		})
	}
}

func TestDoNetworkError(t *testing.T) {
	calls := 0
	c, _ := newTestClient(t, Options{Transport: roundTripFunc(func(*http.Request) (*http.Response, error) {
		calls++
		return nil, io.ErrUnexpectedEOF
	})})
	resp, err := c.Do(t.Context(), http.MethodGet, "http://origin.test/v2/", nil)
	if resp != nil {
		_ = resp.Body.Close()
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}
