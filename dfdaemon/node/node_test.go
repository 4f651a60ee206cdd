package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/internal/enginetest"
	"github.com/damselfly-io/damselfly/dfdaemon/node"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// site is a node service on a socket, before a registry, without a supernode.
type site struct {
	apiv1.NodeClient
	t    *testing.T
	reg  *registrytest.Registry
	node *enginetest.Node
}

func newSite(t *testing.T, o enginetest.Options) *site {
	t.Helper()
	s := &site{t: t, reg: registrytest.New(t), node: enginetest.New(t, o)}
	// Names of sockets are limited to some 100 bytes.
	dir, err := os.MkdirTemp("", "dfnode")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	apiv1.RegisterNodeServer(srv, node.New(node.Options{Engine: s.node.Engine, Store: s.node.Store}))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.NodeClient = apiv1.NewNodeClient(conn)
	t.Cleanup(func() {
		s.node.Stop()
		_ = conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// blob adds a blob, and returns how to ask for it.
func (s *site) blob(data []byte) *apiv1.Source {
	d := s.reg.Blob("org/app", data)
	return &apiv1.Source{TaskId: d, Url: s.reg.URL + registrytest.BlobPath("org/app", d)}
}

func (s *site) read(r *apiv1.ReadRequest) ([]byte, error) {
	s.t.Helper()
	stream, err := s.Read(s.t.Context(), r)
	if err != nil {
		return nil, err
	}
	var got []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, m.Data...)
	}
}

func (s *site) wantCode(err error, want codes.Code, what string) {
	s.t.Helper()
	if status.Code(err) != want {
		s.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestOpenReadAndList(t *testing.T) {
	s := newSite(t, enginetest.Options{})
	data := registrytest.Random(700_000, 1)
	src := s.blob(data)
	st, err := s.Open(t.Context(), &apiv1.OpenRequest{Source: src})
	if err != nil {
		t.Fatal(err)
	}
	if st.TaskId != src.TaskId || st.Table.Length != int64(len(data)) || st.Pieces == 0 {
		t.Errorf("Open: %v", st)
	}
	for _, tt := range []struct {
		name           string
		offset, length int64
		from, to       int
	}{
		{"a range", 100_000, 50_000, 100_000, 150_000},
		{"from an offset", 600_000, 0, 600_000, 700_000},
		{"beyond the end", 600_000, 900_000, 600_000, 700_000},
		{"at the end", 700_000, 10, 700_000, 700_000},
		{"the whole", 0, 0, 0, 700_000},
		{"the whole, with -1", 0, -1, 0, 700_000},
	} {
		got, err := s.read(&apiv1.ReadRequest{Source: src, Offset: tt.offset, Length: tt.length})
		if err != nil || !bytes.Equal(got, data[tt.from:tt.to]) {
			t.Errorf("%s: %d bytes, error %v", tt.name, len(got), err)
		}
	}
	testenv.Eventually(t, func() bool {
		list, err := s.ListTasks(t.Context(), &apiv1.ListTasksRequest{})
		return err == nil && len(list.Tasks) == 1 && list.Tasks[0].Complete && list.Tasks[0].Source == src.Url
	}, "the complete task in the list")
	got, err := s.read(&apiv1.ReadRequest{TaskId: src.TaskId, Offset: 5})
	if err != nil || !bytes.Equal(got, data[5:]) {
		t.Errorf("by ID alone: %d bytes, error %v", len(got), err)
	}
}

func TestReadRefuses(t *testing.T) {
	s := newSite(t, enginetest.Options{})
	src := s.blob(registrytest.Random(1000, 2))
	absent := registrytest.Digest([]byte("absent"))
	private := s.reg.Blob("org/private", registrytest.Random(1000, 3))
	s.reg.Allow("org/private", "Bearer good")
	for _, tt := range []struct {
		name string
		r    *apiv1.ReadRequest
		want codes.Code
	}{
		{"an offset beyond the end", &apiv1.ReadRequest{Source: src, Offset: 1001}, codes.OutOfRange},
		{"a negative offset", &apiv1.ReadRequest{Source: src, Offset: -1}, codes.OutOfRange},
		{"nothing named", &apiv1.ReadRequest{}, codes.NotFound},
		{"an ID that is no ID", &apiv1.ReadRequest{TaskId: "../x"}, codes.InvalidArgument},
		{"a task that is not here", &apiv1.ReadRequest{TaskId: absent}, codes.NotFound},
		{"a URL of another kind", &apiv1.ReadRequest{Source: &apiv1.Source{Url: "file:///etc/passwd"}}, codes.InvalidArgument},
		{"absent at the origin", &apiv1.ReadRequest{Source: &apiv1.Source{TaskId: absent, Url: s.reg.URL + registrytest.BlobPath("org/app", absent)}}, codes.NotFound},
		{"not permitted", &apiv1.ReadRequest{Source: &apiv1.Source{TaskId: private, Url: s.reg.URL + registrytest.BlobPath("org/private", private)}}, codes.Unauthenticated},
	} {
		got, err := s.read(tt.r)
		s.wantCode(err, tt.want, tt.name)
		if len(got) > 0 {
			t.Errorf("%s: %d bytes came", tt.name, len(got))
		}
	}
}

func TestWrongContentIsDataLoss(t *testing.T) {
	s := newSite(t, enginetest.Options{})
	d := registrytest.Digest([]byte("right"))
	s.reg.BlobAs("org/app", d, []byte("wrong"))
	_, err := s.read(&apiv1.ReadRequest{Source: &apiv1.Source{TaskId: d, Url: s.reg.URL + registrytest.BlobPath("org/app", d)}})
	if err == nil {
		t.Error("wrong content was read")
	}
}

func TestPrefetchAndWatch(t *testing.T) {
	s := newSite(t, enginetest.Options{Engine: func(o *engine.Options) { o.Linger = time.Hour }})
	data := registrytest.Random(700_000, 4)
	src := s.blob(data)
	path := registrytest.BlobPath("org/app", src.TaskId)
	s.reg.Stall(path, 400_000)
	if _, err := s.Prefetch(t.Context(), &apiv1.PrefetchRequest{Source: src, Priority: apiv1.Priority_PRIORITY_PREFETCH}); err != nil {
		t.Fatal(err)
	}
	watch, err := s.Watch(t.Context(), &apiv1.WatchRequest{TaskId: src.TaskId})
	if err != nil {
		t.Fatal(err)
	}
	first, err := watch.Recv()
	if err != nil || first.Complete || !first.Active {
		t.Errorf("first status %v, error %v", first, err)
	}
	_, err = s.RemoveTask(t.Context(), &apiv1.RemoveTaskRequest{TaskId: src.TaskId})
	s.wantCode(err, codes.FailedPrecondition, "removing a task in use")
	s.reg.Release(path)
	last := first
	for {
		st, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if st.HeldBytes < last.HeldBytes {
			t.Errorf("held bytes fell from %d to %d", last.HeldBytes, st.HeldBytes)
		}
		last = st
	}
	if !last.Complete || last.HeldBytes != int64(len(data)) {
		t.Errorf("last status %v", last)
	}
	testenv.Eventually(t, func() bool {
		_, err := s.RemoveTask(t.Context(), &apiv1.RemoveTaskRequest{TaskId: src.TaskId})
		return err == nil
	}, "the task to be removable")
	_, err = s.RemoveTask(t.Context(), &apiv1.RemoveTaskRequest{TaskId: src.TaskId})
	s.wantCode(err, codes.NotFound, "removing it again")
	_, err = s.RemoveTask(t.Context(), &apiv1.RemoveTaskRequest{TaskId: "x"})
	s.wantCode(err, codes.InvalidArgument, "removing no ID")
	w, err := s.Watch(t.Context(), &apiv1.WatchRequest{TaskId: src.TaskId})
	if err == nil {
		_, err = w.Recv()
	}
	s.wantCode(err, codes.NotFound, "watching it")
}

func TestUsageAndPrune(t *testing.T) {
	s := newSite(t, enginetest.Options{})
	var total int64
	for i := range 3 {
		data := registrytest.Random(100_000+i, uint64(10+i))
		total += int64(len(data))
		if _, err := s.read(&apiv1.ReadRequest{Source: s.blob(data)}); err != nil {
			t.Fatal(err)
		}
	}
	usage := func() *apiv1.CacheUsageResponse {
		u, err := s.CacheUsage(t.Context(), &apiv1.CacheUsageRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if u := usage(); u.Bytes != total || u.Tasks != 3 || u.Free <= 0 {
		t.Errorf("usage %v", u)
	}
	var freed int64
	testenv.Eventually(t, func() bool {
		p, err := s.CachePrune(t.Context(), &apiv1.CachePruneRequest{})
		if err != nil {
			t.Fatal(err)
		}
		freed += p.FreedBytes
		return usage().Tasks == 0 // downloads that are ending hold theirs
	}, "the cache to be empty")
	if u := usage(); freed != total || u.Bytes != 0 {
		t.Errorf("freed %d of %d, usage %v", freed, total, u)
	}
}

func TestReadEndsWithItsClient(t *testing.T) {
	s := newSite(t, enginetest.Options{})
	src := s.blob(registrytest.Random(700_000, 5))
	path := registrytest.BlobPath("org/app", src.TaskId)
	s.reg.Stall(path, 300_000)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := s.Read(ctx, &apiv1.ReadRequest{Source: src})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	for err == nil {
		_, err = stream.Recv()
	}
	s.wantCode(err, codes.Canceled, "the cancelled read")
	testenv.Eventually(t, func() bool {
		list, err := s.ListTasks(t.Context(), &apiv1.ListTasksRequest{})
		return err == nil && len(list.Tasks) == 1 && !list.Tasks[0].Active
	}, "the task to be given back")
}
