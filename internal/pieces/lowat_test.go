package pieces

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLowWaterMark reads bodies of many lengths over one connection: whatever
// the mark was meanwhile, each is read to its end and the next answer is seen.
func TestLowWaterMark(t *testing.T) {
	lengths := []int64{0, 1, lowWater, lowWater + lowWaterTail - 1, lowWater + lowWaterTail, 1 << 20, 3<<20 + 5}
	content := bytes.Repeat([]byte("piece"), 1<<20)
	var length int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(content[:length])
	}))
	defer srv.Close()

	var first *lowWaterConn
	tr := &http.Transport{DialContext: dialLowWater((&net.Dialer{}).DialContext)}
	defer tr.CloseIdleConnections()
	for _, length = range lengths {
		var conn *lowWaterConn
		req, err := http.NewRequestWithContext(withConn(t.Context(), &conn), http.MethodGet, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req) //nolint:bodyclose // body.Close does
		if err != nil {
			t.Fatal(err)
		}
		conn.plain = false // the test's network is loopback
		body := &pieceBody{ReadCloser: resp.Body, conn: conn, left: length}
		high := 0
		var got bytes.Buffer
		for buf := make([]byte, 10_000); ; {
			n, err := body.Read(buf)
			got.Write(buf[:n])
			high = max(high, conn.mark)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := body.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), content[:length]) {
			t.Errorf("%d bytes: read %d others", length, got.Len())
		}
		if raised := length >= lowWater+lowWaterTail; raised != (high == lowWater) {
			t.Errorf("%d bytes: the mark was %d at the most", length, high)
		}
		if m := markOf(t, conn); m != 1 {
			t.Errorf("%d bytes: the mark is %d afterwards", length, m)
		}
		if first == nil {
			first = conn
		}
		if conn != first {
			t.Errorf("%d bytes: the connection was not used again", length)
		}
	}
}

// markOf asks the kernel for the mark.
func markOf(t *testing.T, c *lowWaterConn) (mark int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

// TestOtherConnections get no mark.
func TestOtherConnections(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a pipe in memory
	defer b.Close() //nolint:errcheck // as above
	c, err := dialLowWater(func(context.Context, string, string) (net.Conn, error) { return a, nil })(t.Context(), "", "")
	if err != nil || c != a {
		t.Errorf("got %v, %v", c, err)
	}
}

// TestStalledBelowTheMark has a sender that sends less than the mark and waits
// for the reader: the reader gets what there is.
func TestStalledBelowTheMark(t *testing.T) {
	const length, early = 1 << 20, 10_000
	read := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(length))
		_, _ = w.Write(make([]byte, early))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-read:
		case <-r.Context().Done():
		}
		_, _ = w.Write(make([]byte, length-early))
	}))
	defer srv.Close()
	tr := &http.Transport{DialContext: dialLowWater((&net.Dialer{}).DialContext)}
	defer tr.CloseIdleConnections()
	var conn *lowWaterConn
	req, err := http.NewRequestWithContext(withConn(t.Context(), &conn), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req) //nolint:bodyclose // body.Close does
	if err != nil {
		t.Fatal(err)
	}
	conn.plain = false // the test's network is loopback
	body := &pieceBody{ReadCloser: resp.Body, conn: conn, left: length}
	if _, err := io.ReadFull(body, make([]byte, early)); err != nil {
		t.Fatal(err)
	}
	close(read)
	if rest, err := io.ReadAll(body); err != nil || len(rest) != length-early {
		t.Errorf("then %d bytes, %v", len(rest), err)
	}
	if err := body.Close(); err != nil {
		t.Fatal(err)
	}
}
