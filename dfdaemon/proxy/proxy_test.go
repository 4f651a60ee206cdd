package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/internal/enginetest"
	"github.com/damselfly-io/damselfly/dfdaemon/proxy"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// site is a proxy before a file server, without a supernode.
type site struct {
	*httptest.Server
	t      *testing.T
	origin *registrytest.Registry
	node   *enginetest.Node
	client *http.Client
}

func newSite(t *testing.T, rules ...string) *site {
	t.Helper()
	s := &site{t: t, origin: registrytest.New(t), node: enginetest.New(t, enginetest.Options{Engine: linger})}
	p, err := proxy.New(proxy.Options{Engine: s.node.Engine, Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(p)
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(at)}
	s.client = &http.Client{Transport: tr}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		s.node.Stop()
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// linger lets a download end only when it is complete.
func linger(o *engine.Options) { o.Linger = time.Hour }

type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (s *site) do(method, path string, header ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.origin.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

func TestMatchingFileIsFetchedOnce(t *testing.T) {
	s := newSite(t, `\.bin$`)
	data := registrytest.Random(300_000, 1)
	s.origin.File("/model.bin", data, `"v1"`)
	for range 2 {
		a := s.do("GET", "/model.bin")
		if a.err != nil || a.status != 200 || !bytes.Equal(a.body, data) || a.header.Get("Etag") != `"v1"` || a.header.Get("Content-Type") != "application/x-test" {
			t.Fatalf("status %d, %d bytes, %v, error %v", a.status, len(a.body), a.header, a.err)
		}
	}
	if sent := s.origin.Sent("/model.bin"); sent != int64(len(data)) {
		t.Errorf("the origin sent %d bytes for %d", sent, len(data))
	}
	for _, tt := range []struct {
		header, contentRange string
		status, from, to     int
	}{
		{"bytes=1000-1999", "bytes 1000-1999/300000", 206, 1000, 2000},
		{"bytes=-10", "bytes 299990-299999/300000", 206, 299_990, 300_000},
		{"bytes=299999-", "bytes 299999-299999/300000", 206, 299_999, 300_000},
		{"lines=1-2", "", 200, 0, 300_000},
	} {
		a := s.do("GET", "/model.bin", "Range", tt.header)
		if a.status != tt.status || !bytes.Equal(a.body, data[tt.from:tt.to]) || a.header.Get("Content-Range") != tt.contentRange {
			t.Errorf("%s: status %d, %d bytes, %v", tt.header, a.status, len(a.body), a.header)
		}
	}
	if a := s.do("GET", "/model.bin", "Range", "bytes=300000-"); a.status != 416 || a.header.Get("Content-Range") != "bytes */300000" {
		t.Errorf("beyond the end: %d %v", a.status, a.header)
	}
}

func TestChangedFileIsFetchedAnew(t *testing.T) {
	s := newSite(t, `\.bin$`)
	for i, etag := range []string{`"v1"`, `"v2"`} {
		data := registrytest.Random(100_000, uint64(i))
		s.origin.File("/model.bin", data, etag)
		if a := s.do("GET", "/model.bin"); !bytes.Equal(a.body, data) || a.header.Get("Etag") != etag {
			t.Errorf("%s: status %d, %d bytes, %v", etag, a.status, len(a.body), a.header)
		}
	}
}

func TestEverythingElseIsPassedOn(t *testing.T) {
	s := newSite(t, `\.bin$`)
	data := registrytest.Random(1000, 2)
	s.origin.File("/model.bin", data, `"v1"`)
	s.origin.File("/page", data, `"v1"`)
	for _, tt := range []struct {
		name, method, path string
		header             []string
		status             int
	}{
		{"no rule matches", "GET", "/page", nil, 200},
		{"HEAD", "HEAD", "/model.bin", nil, 200},
		{"POST", "POST", "/model.bin", nil, 200},
		{"a cookie", "GET", "/model.bin", []string{"Cookie", "session=1"}, 200},
		{"a condition", "GET", "/model.bin", []string{"If-None-Match", `"v1"`}, 304},
		{"another condition", "GET", "/model.bin", []string{"If-Range", `"v1"`, "Range", "bytes=0-9"}, 206},
	} {
		before := len(s.origin.Hits("", tt.path))
		a := s.do(tt.method, tt.path, tt.header...)
		if a.err != nil || a.status != tt.status {
			t.Errorf("%s: status %d, error %v", tt.name, a.status, a.err)
		}
		hits := s.origin.Hits("", tt.path)
		if len(hits) != before+1 || hits[before].Method != tt.method {
			t.Errorf("%s: the origin saw %+v", tt.name, hits[before:])
		}
	}
	if n := len(s.node.Store.List()); n != 0 {
		t.Errorf("%d tasks in the store", n)
	}
}

func TestCredentialsDecideForEachClient(t *testing.T) {
	s := newSite(t, `/private/`)
	data := registrytest.Random(100_000, 3)
	s.origin.File("/private/x", data, `"v1"`)
	s.origin.Allow("/private/x", "Bearer good")
	if a := s.do("GET", "/private/x", "Authorization", "Bearer good"); a.status != 200 || !bytes.Equal(a.body, data) {
		t.Fatalf("with permission: status %d", a.status)
	}
	for _, cred := range []string{"", "Bearer bad"} {
		a := s.do("GET", "/private/x", "Authorization", cred)
		if a.status != 401 || a.header.Get("Www-Authenticate") != registrytest.Challenge || bytes.Contains(a.body, data[:16]) {
			t.Errorf("with %q: status %d, %v", cred, a.status, a.header)
		}
	}
}

func TestErrorsOfTheOrigin(t *testing.T) {
	s := newSite(t, `.`)
	if a := s.do("GET", "/absent?token=s3cret"); a.status != 404 || strings.Contains(string(a.body), "s3cret") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	data := registrytest.Random(500_000, 4)
	s.origin.File("/stalls", data, `"v1"`)
	s.origin.Stall("/stalls", 200_000)
	got := make(chan answer, 1)
	go func() { got <- s.do("GET", "/stalls") }()
	testenv.Eventually(t, func() bool { return s.origin.Sent("/stalls") >= 200_000 }, "the origin to stall")
	s.node.Stop()
	if a := <-got; a.err == nil && a.status == 200 {
		t.Errorf("status %d, %d bytes of %d as a complete body", a.status, len(a.body), len(data))
	}
}

func TestNotForProxies(t *testing.T) {
	s := newSite(t, `.`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req) // as if it were a web server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("status %d, want 400", resp.StatusCode)
	}
	if _, err := proxy.New(proxy.Options{Rules: []string{"("}}); err == nil || !strings.Contains(err.Error(), `"("`) {
		t.Errorf("a broken rule: %v", err)
	}
}

func TestTunnel(t *testing.T) {
	s := newSite(t)
	echo, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { // reads to the end, then answers in capitals
		conn, err := echo.Accept()
		if err != nil {
			served <- err
			return
		}
		b, err := io.ReadAll(conn)
		if err == nil {
			_, err = conn.Write(bytes.ToUpper(b))
		}
		_ = conn.Close()
		served <- err
	}()
	conn, reader, status := connect(t, s, echo.Addr().String(), "early ")
	if !strings.Contains(status, " 200 ") {
		t.Fatalf("CONNECT: %q", status)
	}
	if _, err := io.WriteString(conn, "and late"); err != nil {
		t.Fatal(err)
	}
	half, ok := conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("the connection is a %T", conn)
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(reader); err != nil || string(b) != "EARLY AND LATE" {
		t.Errorf("through the tunnel came %q, error %v", b, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := echo.Close(); err != nil {
		t.Error(err)
	}
	if _, _, status := connect(t, s, echo.Addr().String(), ""); !strings.Contains(status, " 502 ") {
		t.Errorf("CONNECT to nobody: %q", status)
	}
}

// connect asks the proxy for a tunnel to addr, and sends early without waiting
// for the answer.
func connect(t *testing.T, s *site, addr, early string) (net.Conn, *bufio.Reader, string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n%s", addr, addr, early); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	status, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(status, " 200 ") {
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return conn, r, status
}
