package nodetest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/task"
)

// chunk is the size of the messages of Read.
const chunk = 256 << 10

// Content is what a URL has.
type Content struct {
	Data []byte
	ETag string
	// OpenError is what Open fails with.
	OpenError error
	// After this many bytes of the content Read fails with ReadError, or waits
	// for the end of the call if that is nil. 0: never.
	StopAt    int64
	ReadError error
	// Length is announced instead of the true one, if it is not 0.
	Length int64
}

// Node is the server. Set its fields between calls only.
type Node struct {
	apiv1.UnimplementedNodeServer

	Socket string
	URLs   map[string]*Content
	Tasks  []*apiv1.TaskStatus
	Usage  apiv1.CacheUsageResponse
	// Profiles are what is known of images, by the digest of their manifest.
	Profiles map[string][]*apiv1.Access
	// NodeInfo is what Info answers.
	NodeInfo apiv1.InfoResponse

	mu     sync.Mutex
	opened []*apiv1.OpenRequest
	reads  []*apiv1.ReadRequest
	byTask map[string]*Content
	pruned int64
}

// Start runs a node until the end of the test.
func Start(t testing.TB) *Node {
	t.Helper()
	n := &Node{URLs: map[string]*Content{}, byTask: map[string]*Content{}}
	n.Socket = serve(t, "dfdaemon.sock", func(s *grpc.Server) { apiv1.RegisterNodeServer(s, n) })
	return n
}

// serve serves until the end of the test, and returns the socket.
func serve(t testing.TB, name string, register func(*grpc.Server)) string {
	t.Helper()
	// The name of a socket is limited to some 100 bytes, which the test's own
	// directory may exceed.
	dir, err := os.MkdirTemp("", "dfctl")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, name)
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		// A test that calls nothing may stop the server before it serves.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// Opened returns the requests to Open so far.
func (n *Node) Opened() []*apiv1.OpenRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.opened)
}

// Reads returns the requests to Read so far.
func (n *Node) Reads() []*apiv1.ReadRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.reads)
}

// Pruned returns the target of the last CachePrune.
func (n *Node) Pruned() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pruned
}

// Open implements apiv1.NodeServer.
func (n *Node) Open(_ context.Context, req *apiv1.OpenRequest) (*apiv1.TaskStatus, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opened = append(n.opened, req)
	c := n.URLs[req.Source.GetUrl()]
	if c == nil {
		return nil, status.Error(codes.NotFound, "origin answered 404 Not Found")
	}
	if c.OpenError != nil {
		return nil, c.OpenError
	}
	length := int64(len(c.Data))
	if c.Length != 0 {
		length = c.Length
	}
	id := req.Source.TaskId
	if id == "" {
		id = string(task.URLID(req.Source.Url, c.ETag, "", length))
	}
	n.byTask[id] = c
	return n.status(id, length), nil
}

func (n *Node) status(id string, length int64) *apiv1.TaskStatus {
	return &apiv1.TaskStatus{
		TaskId: id, Table: &apiv1.Table{Length: length, PieceSize: 1 << 20},
		HeldBytes: length, Active: true, FromPeers: length / 2, FromOrigin: length - length/2,
	}
}

// Read implements apiv1.NodeServer.
func (n *Node) Read(req *apiv1.ReadRequest, stream grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
	n.mu.Lock()
	n.reads = append(n.reads, req)
	c := n.byTask[req.TaskId]
	if c == nil && req.Source != nil {
		c = n.URLs[req.Source.Url]
	}
	n.mu.Unlock()
	switch {
	case c == nil:
		return status.Error(codes.NotFound, "no such task")
	case req.Offset > int64(len(c.Data)):
		return status.Error(codes.OutOfRange, "offset beyond the end")
	}
	end := int64(len(c.Data))
	if req.Length > 0 {
		end = min(end, req.Offset+req.Length)
	}
	if c.StopAt > 0 {
		end = c.StopAt
	}
	for offset := req.Offset; offset < end; {
		next := min(offset+chunk, end)
		if err := stream.Send(&apiv1.ReadChunk{Data: c.Data[offset:next]}); err != nil {
			return err
		}
		offset = next
	}
	if c.StopAt > 0 {
		if c.ReadError != nil {
			return c.ReadError
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	return nil
}

// Watch implements apiv1.NodeServer.
func (n *Node) Watch(req *apiv1.WatchRequest, stream grpc.ServerStreamingServer[apiv1.TaskStatus]) error {
	n.mu.Lock()
	c := n.byTask[req.TaskId]
	n.mu.Unlock()
	if c == nil {
		return status.Error(codes.NotFound, "no such task")
	}
	return stream.Send(n.status(req.TaskId, int64(len(c.Data))))
}

// ListTasks implements apiv1.NodeServer.
func (n *Node) ListTasks(context.Context, *apiv1.ListTasksRequest) (*apiv1.ListTasksResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &apiv1.ListTasksResponse{Tasks: n.Tasks}, nil
}

// RemoveTask implements apiv1.NodeServer.
func (n *Node) RemoveTask(_ context.Context, req *apiv1.RemoveTaskRequest) (*apiv1.RemoveTaskResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.Tasks, func(st *apiv1.TaskStatus) bool { return st.TaskId == req.TaskId })
	switch {
	case i < 0:
		return nil, status.Error(codes.NotFound, "no such task")
	case n.Tasks[i].Active:
		return nil, status.Error(codes.FailedPrecondition, "the task is in use")
	}
	n.Tasks = slices.Delete(n.Tasks, i, i+1)
	return &apiv1.RemoveTaskResponse{}, nil
}

// CacheUsage implements apiv1.NodeServer.
func (n *Node) CacheUsage(context.Context, *apiv1.CacheUsageRequest) (*apiv1.CacheUsageResponse, error) {
	u := &n.Usage
	return &apiv1.CacheUsageResponse{Bytes: u.Bytes, Limit: u.Limit, PinnedBytes: u.PinnedBytes, Free: u.Free, Tasks: u.Tasks}, nil
}

// CachePrune implements apiv1.NodeServer. It removes all tasks that are not
// active.
func (n *Node) CachePrune(_ context.Context, req *apiv1.CachePruneRequest) (*apiv1.CachePruneResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pruned = req.TargetBytes
	resp := &apiv1.CachePruneResponse{}
	n.Tasks = slices.DeleteFunc(n.Tasks, func(st *apiv1.TaskStatus) bool {
		if st.Active {
			return false
		}
		resp.FreedBytes += st.HeldBytes
		resp.Removed = append(resp.Removed, st.TaskId)
		return true
	})
	return resp, nil
}

// Profile implements apiv1.NodeServer.
func (n *Node) Profile(_ context.Context, req *apiv1.ProfileRequest) (*apiv1.ProfileResponse, error) {
	return &apiv1.ProfileResponse{Accesses: n.Profiles[req.Image]}, nil
}

// Info implements apiv1.NodeServer.
func (n *Node) Info(context.Context, *apiv1.InfoRequest) (*apiv1.InfoResponse, error) {
	i := &n.NodeInfo
	return &apiv1.InfoResponse{Version: i.Version, Name: i.Name, Connected: i.Connected, TrustKeys: i.TrustKeys, HttpSocket: i.HttpSocket}, nil
}
