package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// daemon is a Node service with one blob on a socket.
type daemon struct {
	apiv1.UnimplementedNodeServer
	t      *testing.T
	socket string
	data   []byte
	srv    *grpc.Server
	served chan error

	mu       sync.Mutex
	requests []*apiv1.ReadRequest
	wants    []*apiv1.PrefetchRequest
	read     func(n int, r *apiv1.ReadRequest, s grpc.ServerStreamingServer[apiv1.ReadChunk]) error
	failure  error // of calls other than Read
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "node") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &daemon{t: t, socket: filepath.Join(dir, "dfdaemon.sock"), data: bytes.Repeat([]byte("0123456789"), 100_000)}
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(d.t.Context(), "unix", d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	d.srv, d.served = grpc.NewServer(), make(chan error, 1)
	apiv1.RegisterNodeServer(d.srv, d)
	go func() { d.served <- d.srv.Serve(lis) }()
}

func (d *daemon) stop() {
	if d.srv != nil {
		d.srv.Stop()
		if err := <-d.served; err != nil {
			d.t.Error(err)
		}
		d.srv = nil
	}
}

func (d *daemon) Read(r *apiv1.ReadRequest, s grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
	d.mu.Lock()
	d.requests = append(d.requests, r)
	n, read := len(d.requests)-1, d.read
	d.mu.Unlock()
	if read != nil {
		return read(n, r, s)
	}
	return d.send(s, r.Offset, r.Length)
}

func (d *daemon) send(s grpc.ServerStreamingServer[apiv1.ReadChunk], off, n int64) error {
	for b := d.data[off:min(off+n, int64(len(d.data)))]; len(b) > 0; {
		m := min(len(b), 70_000)
		if err := s.Send(&apiv1.ReadChunk{Data: b[:m]}); err != nil {
			return err
		}
		b = b[m:]
	}
	return nil
}

func (d *daemon) Prefetch(_ context.Context, r *apiv1.PrefetchRequest) (*apiv1.TaskStatus, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wants = append(d.wants, r)
	return &apiv1.TaskStatus{}, d.failure
}

func (d *daemon) RemoveTask(context.Context, *apiv1.RemoveTaskRequest) (*apiv1.RemoveTaskResponse, error) {
	return &apiv1.RemoveTaskResponse{}, d.failure
}

func (d *daemon) CacheUsage(context.Context, *apiv1.CacheUsageRequest) (*apiv1.CacheUsageResponse, error) {
	return &apiv1.CacheUsageResponse{}, d.failure
}

func (d *daemon) client(patience time.Duration) *node.Client {
	d.t.Helper()
	c, err := node.New(node.Options{Socket: d.socket, Patience: patience})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

var blob = node.Blob{Digest: chunkfmt.Sum([]byte("blob")), Repo: "registry.test:5000/org/app", Ends: []int64{3, 500, 1_000_000}}

func TestReadBlob(t *testing.T) {
	d := newDaemon(t)
	d.start()
	c := d.client(0)
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0, 300_000)
	got, err := c.ReadBlob(t.Context(), blob, 7, 300_000, buf, node.Prefetch)
	if err != nil || !bytes.Equal(got, d.data[7:300_007]) || &got[0] != &buf[:1][0] {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r := d.requests[0]
	id := blob.Digest.String()
	if r.TaskId != id || r.Offset != 7 || r.Length != 300_000 || r.Priority != apiv1.Priority_PRIORITY_PREFETCH ||
		r.Source.TaskId != id || r.Source.Url != "https://registry.test:5000/v2/org/app/blobs/"+id || r.Source.Credential != nil ||
		r.Source.Table.Length != 1_000_000 || !slices.Equal(r.Source.Table.Ends, blob.Ends) {
		t.Errorf("asked %v", r)
	}
	if _, err := c.ReadBlob(t.Context(), blob, 999_999, 2, nil, node.Demand); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("beyond the end: %v", err)
	}
	if got, err := c.ReadBlob(t.Context(), blob, 0, 0, nil, node.Demand); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if _, err := c.ReadBlob(t.Context(), node.Blob{Repo: "alpine"}, 0, 1, nil, node.Demand); err == nil {
		t.Error("a repository without a host was taken")
	}
}

func TestPrefetchAndDiscard(t *testing.T) {
	d := newDaemon(t)
	d.start()
	c := d.client(0)
	if err := c.Prefetch(t.Context(), blob, []node.Range{{Offset: 3, Length: 9}}, node.Background); err != nil {
		t.Fatal(err)
	}
	if r := d.wants[0]; len(r.Ranges) != 1 || r.Ranges[0].Offset != 3 || r.Ranges[0].Length != 9 || r.Priority != apiv1.Priority_PRIORITY_PREHEAT {
		t.Errorf("asked %v", r)
	}
	for _, tc := range []struct {
		code codes.Code
		ok   bool
	}{{codes.OK, true}, {codes.NotFound, true}, {codes.FailedPrecondition, true}, {codes.Internal, false}} {
		d.failure = status.Error(tc.code, "so")
		if err := c.Discard(t.Context(), blob); (err == nil) != tc.ok {
			t.Errorf("discard, %v: %v", tc.code, err)
		}
	}
}

func TestErrors(t *testing.T) {
	d := newDaemon(t)
	d.start()
	c := d.client(0)
	for code, want := range map[codes.Code]struct {
		class     error
		permanent bool
	}{
		codes.NotFound:          {node.ErrNotFound, true},
		codes.PermissionDenied:  {node.ErrDenied, true},
		codes.Unauthenticated:   {node.ErrDenied, true},
		codes.DataLoss:          {node.ErrDamaged, true},
		codes.OutOfRange:        {node.ErrDamaged, true},
		codes.ResourceExhausted: {node.ErrFull, false},
		codes.Unavailable:       {nil, false},
		codes.Canceled:          {nil, false},
		codes.DeadlineExceeded:  {nil, false},
		codes.Internal:          {nil, false},
	} {
		for _, after := range []int64{0, 100} {
			d.read = func(_ int, _ *apiv1.ReadRequest, s grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
				if err := d.send(s, 0, after); err != nil {
					return err
				}
				return status.Error(code, "because of this")
			}
			_, err := c.ReadBlob(t.Context(), blob, 0, 200, nil, node.Demand)
			for _, class := range []error{node.ErrNotFound, node.ErrDenied, node.ErrDamaged, node.ErrFull, node.ErrUnreachable} {
				if errors.Is(err, class) != errors.Is(want.class, class) {
					t.Errorf("%v after %d bytes: %v", code, after, err)
				}
			}
			if node.Permanent(err) != want.permanent || !strings.Contains(err.Error(), "because of this") || !strings.Contains(err.Error(), "registry.test:5000/org/app@sha256:") {
				t.Errorf("%v: %v", code, err)
			}
		}
		d.failure = status.Error(code, "because of this")
		if err := c.Ping(t.Context()); want.class != nil && !errors.Is(err, want.class) || errors.Is(err, node.ErrUnreachable) {
			t.Errorf("ping, %v: %v", code, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	d := newDaemon(t)
	d.start()
	ctx, cancel := context.WithCancelCause(t.Context())
	d.read = func(_ int, _ *apiv1.ReadRequest, s grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
		cancel(io.ErrClosedPipe)
		<-s.Context().Done()
		return s.Context().Err()
	}
	if _, err := d.client(0).ReadBlob(ctx, blob, 0, 200, nil, node.Demand); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestDaemonAway(t *testing.T) {
	d := newDaemon(t)
	c := d.client(-1)
	if err := c.Ping(t.Context()); !errors.Is(err, node.ErrUnreachable) {
		t.Errorf("ping: %v", err)
	}
	if _, err := c.ReadBlob(t.Context(), blob, 0, 200, nil, node.Demand); !errors.Is(err, node.ErrUnreachable) || node.Permanent(err) {
		t.Errorf("read: %v", err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://registry.test/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := c.Transport().RoundTrip(r); !errors.Is(err, node.ErrUnreachable) {
		t.Errorf("mirror: %v", err)
		_ = resp.Body.Close()
	}
}

// A daemon that goes away in the middle of a read and comes back costs the reader
// time only.
func TestDaemonRestarts(t *testing.T) {
	d := newDaemon(t)
	cut := make(chan struct{})
	d.read = func(n int, r *apiv1.ReadRequest, s grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
		if n > 0 {
			return d.send(s, r.Offset, r.Length)
		}
		if err := d.send(s, r.Offset, 100_000); err != nil {
			return err
		}
		close(cut)
		<-s.Context().Done()
		return s.Context().Err()
	}
	d.start()
	c := d.client(time.Minute)
	type result struct {
		data []byte
		err  error
	}
	results := make(chan result, 1)
	go func() {
		data, err := c.ReadBlob(t.Context(), blob, 0, 900_000, nil, node.Demand)
		results <- result{data, err}
	}()
	<-cut
	d.stop()
	if err := os.Remove(d.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	d.start()
	got := <-results
	if got.err != nil || !bytes.Equal(got.data, d.data[:900_000]) {
		t.Errorf("%d bytes, %v", len(got.data), got.err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTransport(t *testing.T) {
	d := newDaemon(t)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(filepath.Dir(d.socket), "dfdaemon-http.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Method+" "+r.Host+" "+r.URL.String()+" "+r.Header.Get("Accept"))
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	client := http.Client{Transport: d.client(0).Transport()}
	for url, want := range map[string]string{
		"https://quay.io/v2/org/app/manifests/latest":                  "GET dfdaemon /v2/org/app/manifests/latest?ns=quay.io a/b",
		"https://index.docker.io/v2/":                                  "GET dfdaemon /v2/?ns=docker.io a/b",
		"http://127.0.0.1:5000/v2/x/referrers/sha256:1?artifactType=t": "GET dfdaemon /v2/x/referrers/sha256:1?artifactType=t&ns=127.0.0.1%3A5000 a/b",
		"https://auth.docker.io/token?service=x":                       "",
		"https://quay.io/v2x/":                                         "",
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", "a/b")
		resp, err := client.Do(r)
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", url, err)
			}
			continue
		}
		_ = resp.Body.Close()
		if got := resp.Header.Get("X-Seen"); got != want || resp.Request.URL.String() != url {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}
