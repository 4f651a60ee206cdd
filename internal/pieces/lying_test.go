package pieces_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/task"
)

// liar is a parent whose answers are made by handle.
func liar(t *testing.T, handle http.HandlerFunc) pieces.Parent {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	return pieces.Parent{Address: srv.Listener.Addr().String(), Ticket: "secret ticket"}
}

func TestLyingParents(t *testing.T) {
	id := task.URLID("http://x", "", "", 1)
	redirected := make(chan http.Header, 1)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { redirected <- r.Header }))
	defer elsewhere.Close()
	for _, tc := range []struct {
		name   string
		handle http.HandlerFunc
		want   error // nil: any
	}{
		{"longer piece", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 11)) }, nil},
		{"shorter piece", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 9)) }, nil},
		{"length untold", func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(make([]byte, 10))
		}, nil},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, nil},
		{"partial content", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(make([]byte, 10))
		}, nil},
		{"huge header", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
			_, _ = w.Write(make([]byte, 10))
		}, nil},
		{"endless error text", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			for chunk := make([]byte, 64<<10); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, pieces.ErrBusy},
		{"breaks off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := pieces.NewClient(pieces.ClientOptions{})
			defer c.Close()
			body, err := c.Piece(t.Context(), liar(t, tc.handle), id, 0, 10, pieces.Demand, 0)
			if err == nil {
				_ = body.Close()
				t.Fatal("the answer was taken for a piece")
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "secret ticket") {
				t.Errorf("error of %d bytes: %.200v", len(err.Error()), err)
			}
		})
	}
	select {
	case h := <-redirected:
		t.Errorf("a redirect was followed with %v", h)
	default:
	}
}

func TestPieceCutShort(t *testing.T) {
	p := liar(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = w.Write(make([]byte, 5))
	})
	c := pieces.NewClient(pieces.ClientOptions{})
	defer c.Close()
	body, err := c.Piece(t.Context(), p, task.URLID("http://x", "", "", 1), 0, 10, pieces.Demand, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if n, err := io.Copy(io.Discard, body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v; want io.ErrUnexpectedEOF", n, err)
	}
}

func TestUnreachableParent(t *testing.T) {
	dialled := make(chan string, 1)
	c := pieces.NewClient(pieces.ClientOptions{Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
		dialled <- addr
		return nil, errors.New("no route")
	}})
	defer c.Close()
	_, err := c.Piece(t.Context(), pieces.Parent{Address: "node:1"}, task.URLID("http://x", "", "", 1), 7, 10, pieces.Demand, 0)
	if err == nil || !strings.Contains(err.Error(), "piece 7") || !strings.Contains(err.Error(), "no route") {
		t.Errorf("error %v", err)
	}
	if addr := <-dialled; addr != "node:1" {
		t.Errorf("dialled %s", addr)
	}
}
