package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOpenRanges(t *testing.T) {
	data := content(1000)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveFile(w, r, data, `"v1"`) })
	c, _ := newTestClient(t, Options{UserAgent: "test/1"})
	tests := []struct {
		off, n     int64
		first, end int64
	}{
		{0, -1, 0, 1000}, {0, 1, 0, 1}, {10, 20, 10, 30}, {999, 1, 999, 1000},
		{990, 50, 990, 1000}, {500, -1, 500, 1000}, {1, 1<<63 - 1, 1, 1000},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d+%d", tt.off, tt.n), func(t *testing.T) {
			b := mustOpen(t, c, Object{URL: srv.URL}, tt.off, tt.n)
			mustRead(t, b, data[tt.first:tt.end])
			equal(t, "Offset", b.Offset, tt.first)
			equal(t, "N", b.N, tt.end-tt.first)
			equal(t, "Ranged", b.Ranged, true)
			equal(t, "Info", b.Info, Info{Length: 1000, ETag: `"v1"`, ContentType: "application/octet-stream", Ranges: true})
		})
	}
	for _, name := range []string{"Accept-Encoding identity", "User-Agent test/1"} {
		name, want, _ := strings.Cut(name, " ")
		equal(t, name, seen.headers(name)[0], want)
	}
	_, err := c.Open(t.Context(), Object{URL: srv.URL}, 1000, 1)
	var se *StatusError
	if !errors.As(err, &se) || se.Status != 416 || !IsPermanent(err) {
		t.Errorf("read beyond the end: %v, want a permanent 416", err)
	}
}

func TestOpenEmptyObject(t *testing.T) {
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Header.Get("Range") != "" { // as S3 does; ServeContent is kinder
			w.Header().Set("Content-Range", "bytes */0")
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		serveFile(w, r, nil, "")
	})
	c, _ := newTestClient(t, Options{})
	b := mustOpen(t, c, Object{URL: srv.URL}, 0, -1)
	mustRead(t, b, nil)
	equal(t, "Length", b.Length, int64(0))
}

func TestOpenWithoutRange(t *testing.T) {
	data := content(1000)
	srv, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { unranged(w, data, len(data)) })
	c, _ := newTestClient(t, Options{})
	b := mustOpen(t, c, Object{URL: srv.URL}, 300, 5)
	mustRead(t, b, data)
	equal(t, "Offset", b.Offset, int64(0))
	equal(t, "N", b.N, int64(1000))
	equal(t, "Ranged", b.Ranged, false)
	equal(t, "Ranges", b.Ranges, false)
}

func TestOpenUnknownLength(t *testing.T) {
	data := content(100_000)
	srv, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 1 {
			w = &cutWriter{w, 40_000}
		}
		_ = http.NewResponseController(w).Flush() // chunked
		_, _ = w.Write(data)
	})
	c, _ := newTestClient(t, Options{})
	b := mustOpen(t, c, Object{URL: srv.URL}, 0, -1)
	equal(t, "Length", b.Length, int64(-1))
	equal(t, "N", b.N, int64(-1))
	mustRead(t, b, data)
}

// Every answer breaks after some bytes; the object arrives whole all the same.
func TestTruncatedBody(t *testing.T) {
	data := content(100_000)
	for _, validator := range []string{`"strong"`, `W/"weak"`, ""} {
		t.Run(validator, func(t *testing.T) {
			srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
				serveFile(&cutWriter{w, 30_000}, r, data, validator)
			})
			c, clock := newTestClient(t, Options{MaxAttempts: 2, Backoff: func(n int) time.Duration { return time.Duration(n) }})
			mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 5, 99_000), data[5:99_005])
			equal(t, "Range", join(seen.headers("Range")), "bytes=5-99004|bytes=30005-99004|bytes=60005-99004|bytes=90005-99004")
			ifRange := ""
			if strings.HasPrefix(validator, `"`) {
				ifRange = validator
			}
			equal(t, "If-Range", join(seen.headers("If-Range")), join([]string{"", ifRange, ifRange, ifRange}))
			// Progress resets the count, so each wait is the first.
			equal(t, "waits", fmt.Sprint(clock.slept()), "[1ns 1ns 1ns]")
		})
	}
}

func TestTruncatedWithoutRange(t *testing.T) {
	data := content(100_000)
	srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) { unranged(w, data, n*40_000) })
	c, _ := newTestClient(t, Options{})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	equal(t, "requests", seen.count(), 3)
}

// An origin that always breaks at one place is given up on.
func TestNoProgress(t *testing.T) {
	data := content(100_000)
	srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { unranged(w, data, 40_000) })
	c, _ := newTestClient(t, Options{MaxAttempts: 4})
	b := mustOpen(t, c, Object{URL: srv.URL}, 0, -1)
	got, err := io.ReadAll(b)
	if !bytes.Equal(got, data[:40_000]) || !errors.Is(err, io.ErrUnexpectedEOF) || IsPermanent(err) {
		t.Errorf("got %d bytes, %v; want 40000, unexpected EOF", len(got), err)
	}
	equal(t, "requests", seen.count(), 4)
	if _, again := b.Read(make([]byte, 1)); again != err { //nolint:errorlint // the very same error
		t.Errorf("second read: %v", again)
	}
}

// An answer that ends cleanly before its Content-Range does is resumed too.
func TestShortAnswer(t *testing.T) {
	data := content(1000)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n > 1 {
			serveFile(w, r, data, "")
			return
		}
		w.Header().Set("Content-Range", "bytes 0-999/1000")
		w.WriteHeader(http.StatusPartialContent)
		_ = http.NewResponseController(w).Flush() // chunked: no Content-Length
		_, _ = w.Write(data[:400])
	})
	c, _ := newTestClient(t, Options{})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	equal(t, "Range", join(seen.headers("Range")), "bytes=0-|bytes=400-999")

	c, _ = newTestClient(t, Options{MaxAttempts: 1})
	seen.all = nil
	if _, err := io.ReadAll(mustOpen(t, c, Object{URL: srv.URL}, 0, -1)); !errors.Is(err, ErrShort) {
		t.Errorf("without resumption: %v, want ErrShort", err)
	}
}

func TestChanged(t *testing.T) {
	old, fresh := content(1000), bytes.Repeat([]byte("x"), 1000)
	tests := map[string]func(w http.ResponseWriter, r *http.Request){
		"etag, If-Range honoured": func(w http.ResponseWriter, r *http.Request) { serveFile(w, r, fresh, `"v2"`) },
		"etag, If-Range ignored":  func(w http.ResponseWriter, r *http.Request) { r.Header.Del("If-Range"); serveFile(w, r, fresh, `"v2"`) },
		"length, range": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
			serveFile(w, r, fresh[:900], "")
		},
		"length, no range": func(w http.ResponseWriter, _ *http.Request) { unranged(w, fresh[:900], 900) },
		"shorter than what was read": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
			serveFile(w, r, fresh[:10], `"v1"`)
		},
	}
	for name, second := range tests {
		t.Run(name, func(t *testing.T) {
			srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if n == 1 {
					serveFile(&cutWriter{w, 400}, r, old, `"v1"`)
					return
				}
				second(w, r)
			})
			c, clock := newTestClient(t, Options{})
			got, err := io.ReadAll(mustOpen(t, c, Object{URL: srv.URL}, 0, -1))
			if !errors.Is(err, ErrChanged) || !IsPermanent(err) || !bytes.Equal(got, old[:400]) {
				t.Errorf("got %d bytes, %v; want the first 400 and ErrChanged", len(got), err)
			}
			equal(t, "waits", len(clock.slept()), 1)
		})
	}
}

func TestLastModifiedTellsVersions(t *testing.T) {
	data := content(1000)
	then := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			w = &cutWriter{w, 400}
		}
		http.ServeContent(w, r, "", then.Add(time.Duration(n/3)*time.Hour), bytes.NewReader(data))
	})
	c, _ := newTestClient(t, Options{})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	equal(t, "If-Range", join(seen.headers("If-Range")), "|"+then.Format(http.TimeFormat))
}

func TestBadAnswers(t *testing.T) {
	data := content(100)
	partial := func(contentRange string, n int) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data[:n])
		}
	}
	tests := map[string]func(w http.ResponseWriter){
		"other begin":      partial("bytes 11-19/100", 9),
		"beyond":           partial("bytes 10-20/100", 11),
		"early":            partial("bytes 10-18/100", 9),
		"no Content-Range": partial("", 10),
		"malformed":        partial("bytes 10-19", 10),
		"Content-Length":   partial("bytes 10-19/100", 9),
		"coding":           func(w http.ResponseWriter) { w.Header().Set("Content-Encoding", "gzip"); unranged(w, data, 100) },
		"no content":       func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			srv, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { answer(w) })
			c, _ := newTestClient(t, Options{})
			_, err := c.Open(t.Context(), Object{URL: srv.URL}, 10, 10)
			if !errors.Is(err, ErrBadAnswer) || !IsPermanent(err) {
				t.Errorf("%v, want ErrBadAnswer", err)
			}
			equal(t, "requests", seen.count(), 1)
		})
	}
}

// A real connection that goes silent in mid-body is replaced.
func TestStalledOrigin(t *testing.T) {
	data := content(1000)
	srv, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n > 1 {
			serveFile(w, r, data, "")
			return
		}
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write(data[:400])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	c, _ := newTestClient(t, Options{IdleTimeout: 100 * time.Millisecond})
	mustRead(t, mustOpen(t, c, Object{URL: srv.URL}, 0, -1), data)
	if seen.count() < 2 { // more on a machine that itself stalls; the exact times are tested below
		t.Error("the stalled connection gave everything")
	}
}

// A connection serves the next request as soon as its last byte is read, Close
// or not, and also after refusals and redirects.
func TestConnectionsAreReused(t *testing.T) {
	data := content(1 << 20)
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/old":
			http.Redirect(w, r, "/new", http.StatusFound)
		case r.Header.Get("Authorization") != "good":
			http.Error(w, "log in", http.StatusUnauthorized)
		default:
			serveFile(w, r, data, "")
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	c, _ := newTestClient(t, Options{})
	obj := Object{URL: srv.URL + "/old", Credentials: []Credential{{Authorization: "bad"}, {Authorization: "good"}}}
	for range 3 {
		got := make([]byte, 1000)
		if _, err := io.ReadFull(mustOpen(t, c, obj, 5, 1000), got); err != nil {
			t.Fatal(err)
		}
		mustRead(t, mustOpen(t, c, obj, 0, -1), data)
	}
	equal(t, "connections", conns.Load(), int32(1))
}

// The clock of the watch is exact, and slow readers are not held against the
// origin.
func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := roundTripFunc(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ContentLength: 10, Header: http.Header{}, Body: &dripBody{ctx: r.Context(), gap: 9 * time.Second, left: 5}}, nil
		})
		c := New(Options{Transport: rt, IdleTimeout: 10 * time.Second, MaxAttempts: 1})
		b, err := c.Open(t.Context(), Object{URL: "http://origin.test/x"}, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		start := time.Now()
		for range 5 {
			if n, err := b.Read(make([]byte, 4)); n != 1 || err != nil {
				t.Fatalf("read: %d, %v", n, err)
			}
			time.Sleep(time.Minute) // fake clock: a slow reader
		}
		_, err = b.Read(make([]byte, 4))
		if !errors.Is(err, ErrStalled) || IsPermanent(err) {
			t.Errorf("%v, want ErrStalled", err)
		}
		equal(t, "time", time.Since(start), 5*69*time.Second+10*time.Second)
	})
}

func TestStallBeforeAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := roundTripFunc(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		c := New(Options{Transport: rt, IdleTimeout: 10 * time.Second, MaxAttempts: 2, Backoff: func(int) time.Duration { return time.Second }})
		start := time.Now()
		_, err := c.Open(t.Context(), Object{URL: "http://origin.test/x"}, 0, -1)
		if !errors.Is(err, ErrStalled) {
			t.Errorf("%v, want ErrStalled", err)
		}
		equal(t, "time", time.Since(start), 21*time.Second)
	})
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// dripBody gives one byte per gap, left times, and then nothing.
type dripBody struct {
	ctx  context.Context
	gap  time.Duration
	left int
}

func (b *dripBody) Read(p []byte) (int, error) {
	gap := time.After(b.gap)
	if b.left == 0 {
		gap = nil
	}
	select {
	case <-gap:
		b.left--
		p[0] = 'x'
		return 1, nil
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
}

func (b *dripBody) Close() error { return nil }

// Bytes are handed on when they come, not when the buffer is full.
func TestDeliversAtOnce(t *testing.T) {
	release := make(chan struct{})
	srv, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte("a"))
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = w.Write([]byte("b"))
	})
	c, _ := newTestClient(t, Options{})
	b := mustOpen(t, c, Object{URL: srv.URL}, 0, -1)
	p := make([]byte, 100)
	n, err := b.Read(p)
	if n != 1 || err != nil {
		t.Errorf("first read: %d, %v", n, err)
	}
	close(release)
	mustRead(t, b, []byte("b"))
}

func TestContextEndsRead(t *testing.T) {
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte("a"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	c, clock := newTestClient(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	b, err := c.Open(ctx, Object{URL: srv.URL}, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Read(make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := b.Read(make([]byte, 2)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	equal(t, "waits", len(clock.slept()), 0)
}

func TestReadAfterClose(t *testing.T) {
	srv, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveFile(w, r, content(10), "") })
	c, _ := newTestClient(t, Options{})
	b := mustOpen(t, c, Object{URL: srv.URL}, 0, -1)
	_ = b.Close()
	if n, err := b.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read after close: %d, %v", n, err)
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	rt := roundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, ContentLength: 1 << 40, Header: http.Header{}, Body: io.NopCloser(zeros{})}, nil
	})
	c, _ := newTestClient(t, Options{Transport: rt})
	b := mustOpen(t, c, Object{URL: "http://origin.test/x"}, 0, -1)
	p := make([]byte, 1024)
	if n := testing.AllocsPerRun(100, func() { _, _ = b.Read(p) }); n != 0 {
		t.Errorf("%v allocations per read", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestObjectRefused(t *testing.T) {
	c, _ := newTestClient(t, Options{Transport: roundTripFunc(func(*http.Request) (*http.Response, error) {
		t.Error("a request was made")
		return nil, errors.New("no")
	})})
	const url = "http://origin.test/x"
	tests := map[string]struct {
		obj    Object
		off, n int64
	}{
		"relative":        {Object{URL: "/x"}, 0, -1},
		"scheme":          {Object{URL: "file:///etc/passwd"}, 0, -1},
		"no host":         {Object{URL: "http:///x"}, 0, -1},
		"userinfo":        {Object{URL: "http://user:hunter2@origin.test/x"}, 0, -1},
		"malformed":       {Object{URL: "http://origin.test/%zz?sig=hunter2"}, 0, -1},
		"header":          {Object{URL: url, Header: http.Header{"authorization": {"hunter2"}}}, 0, -1},
		"host header":     {Object{URL: url, Header: http.Header{"Host": {"other"}}}, 0, -1},
		"both":            {Object{URL: url, Credentials: []Credential{{Authorization: "hunter2", Username: "u"}}}, 0, -1},
		"empty range":     {Object{URL: url}, 0, 0},
		"negative offset": {Object{URL: url}, -1, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := c.Open(t.Context(), tt.obj, tt.off, tt.n)
			if err == nil || !IsPermanent(err) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %v", err)
			}
		})
	}
}
