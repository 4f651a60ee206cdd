package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-io/damselfly/internal/telemetry"
)

func TestNewLogger(t *testing.T) {
	var buf bytes.Buffer
	log, err := telemetry.NewLogger(&buf, "warn", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hidden")
	log.Warn("shown", "node", "n1")
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
		t.Fatalf("%v in %q", err, buf.String())
	}
	if line["msg"] != "shown" || line["node"] != "n1" {
		t.Errorf("got %v", line)
	}
	buf.Reset()
	if log, err = telemetry.NewLogger(&buf, "debug", "text"); err != nil {
		t.Fatal(err)
	}
	log.Debug("plain")
	if !strings.Contains(buf.String(), "msg=plain") {
		t.Errorf("got %q", buf.String())
	}
}

func TestNewLoggerRefusesUnknown(t *testing.T) {
	for _, c := range [][2]string{{"loud", "text"}, {"info", "xml"}, {"", "text"}} {
		if _, err := telemetry.NewLogger(io.Discard, c[0], c[1]); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%q: got %v", c, err)
		}
	}
}

// get asks the mux as a client with the given remote address.
func get(t *testing.T, h http.Handler, path, remote string) (int, string) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	req.RemoteAddr = remote
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

const loopback, elsewhere = "127.0.0.1:4000", "192.0.2.7:4000"

func TestHealth(t *testing.T) {
	var health telemetry.Health
	mux := telemetry.Mux(telemetry.Registry(), &health)
	if code, body := get(t, mux, "/readyz", elsewhere); code != http.StatusOK || body != "{\"status\":\"ok\"}\n" {
		t.Errorf("without checks: %d %s", code, body)
	}
	health.Register("disk", func(context.Context) error { return nil })
	health.Register("supernode", func(context.Context) error { return errors.New("connection refused") })
	want := "{\"status\":\"unavailable\",\"failing\":{\"supernode\":\"connection refused\"}}\n"
	if code, body := get(t, mux, "/readyz", elsewhere); code != http.StatusServiceUnavailable || body != want {
		t.Errorf("with a failing check: %d %s", code, body)
	}
	if code, body := get(t, mux, "/healthz", elsewhere); code != http.StatusOK || body != "{\"status\":\"ok\"}\n" {
		t.Errorf("healthz: %d %s", code, body)
	}
	health.Register("supernode", func(context.Context) error { return nil })
	if code, _ := get(t, mux, "/readyz", elsewhere); code != http.StatusOK {
		t.Errorf("after recovery: %d", code)
	}
}

func TestHealthBoundsSlowChecks(t *testing.T) {
	var health telemetry.Health
	health.Register("slow", func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if failing := health.Failing(t.Context()); !errors.Is(failing["slow"], context.DeadlineExceeded) {
		t.Errorf("got %v", failing)
	}
}

func TestMetrics(t *testing.T) {
	code, body := get(t, telemetry.Mux(telemetry.Registry(), &telemetry.Health{}), "/metrics", elsewhere)
	if code != http.StatusOK {
		t.Fatal(code)
	}
	for _, want := range []string{"damselfly_build_info{", "go_goroutines ", "process_open_fds "} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestProfilesAreLocal(t *testing.T) {
	mux := telemetry.Mux(telemetry.Registry(), &telemetry.Health{})
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine"} {
		for remote, want := range map[string]int{
			loopback: http.StatusOK, "[::1]:1": http.StatusOK, elsewhere: http.StatusForbidden, "[2001:db8::1]:1": http.StatusForbidden,
			"": http.StatusForbidden, "localhost:1": http.StatusForbidden,
		} {
			if code, _ := get(t, mux, path, remote); code != want {
				t.Errorf("%s from %q: %d, want %d", path, remote, code, want)
			}
		}
	}
}

// serve runs Serve until the returned function is called, which returns its
// error.
func serve(t *testing.T, lis net.Listener, h http.Handler) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- telemetry.Serve(ctx, lis, h, slog.New(slog.DiscardHandler)) }()
	return func() error {
		cancel()
		return <-result
	}
}

func request(t *testing.T, client *http.Client, url string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestServeFinishesRequestsAtShutdown(t *testing.T) {
	lis, err := telemetry.Listen("tcp", "127.0.0.1:0", "http")
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	var inRequest error
	stop := serve(t, lis, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		inRequest = r.Context().Err()
		_, _ = io.WriteString(w, "finished")
	}))
	type answer struct {
		body string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		body, err := request(t, http.DefaultClient, "http://"+lis.Addr().String())
		got <- answer{body, err}
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	// The listener is closed at the start of the shutdown.
	for {
		conn, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(release)
	if a := <-got; a.err != nil || a.body != "finished" {
		t.Errorf("request during shutdown: %q, %v", a.body, a.err)
	}
	if inRequest != nil {
		t.Errorf("request's context ended before the request: %v", inRequest)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestServeReportsBrokenListener(t *testing.T) {
	lis, err := telemetry.Listen("tcp", "127.0.0.1:0", "http")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := telemetry.Serve(t.Context(), lis, http.NotFoundHandler(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error")
	}
}

func TestListenNamesTheSetting(t *testing.T) {
	lis, err := telemetry.Listen("tcp", "127.0.0.1:0", "mirror")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	addr := lis.Addr().String()
	_, err = telemetry.Listen("tcp", addr, "mirror")
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{addr, "in use", `"mirror"`, "--mirror"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if _, err := telemetry.Listen("tcp", "nonsense", "mirror"); err == nil || !strings.Contains(err.Error(), "mirror") {
		t.Errorf("got %v", err)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := telemetry.Listen("unix", path, "socket")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := telemetry.Listen("unix", path, "socket"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("socket with a listener: %v", err)
	}
	unix, ok := first.(*net.UnixListener)
	if !ok {
		t.Fatalf("got a %T", first)
	}
	// A killed process leaves its socket file behind.
	unix.SetUnlinkOnClose(false)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := telemetry.Listen("unix", path, "socket")
	if err != nil {
		t.Fatalf("socket without a listener: %v", err)
	}
	stop := serve(t, again, telemetry.Mux(telemetry.Registry(), &telemetry.Health{}))
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	if body, err := request(t, client, "http://x/debug/pprof/cmdline"); err != nil || !strings.Contains(body, "telemetry") {
		t.Errorf("profile over a unix socket: %q, %v", body, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestListenUnixKeepsOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := telemetry.Listen("unix", path, "socket"); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
