// Package node is the daemon's face for programs on its own node: the gRPC
// service Node on a unix socket. Whoever may open the socket may read what the
// node holds; registries' permission checks apply to what has to be fetched.
package node

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Options configures a Service. Engine and Store are required.
type Options struct {
	Engine *engine.Engine
	Store  *piecestore.Store
	Log    *slog.Logger
}

// Service implements apiv1.NodeServer.
type Service struct {
	apiv1.UnimplementedNodeServer
	o Options
}

// New returns the service.
func New(o Options) *Service {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{o: o}
}

// open opens what a message names. A task without a URL must be in the store.
func (s *Service) open(ctx context.Context, id string, src *apiv1.Source, priority apiv1.Priority, whole bool) (*engine.Handle, error) {
	r := engine.Request{Priority: pieces.Priority(priority), Whole: whole}
	if src != nil {
		source, err := wire.Request(src)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		r.Source = source
	}
	if id != "" {
		parsed, err := task.ParseID(id)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		r.ID = parsed
	}
	if r.URL == "" {
		t, ok := s.o.Store.Get(r.ID)
		if !ok {
			return nil, status.Errorf(codes.NotFound, "%s is not on this node, and no URL says where it is", r.ID)
		}
		complete := t.Complete()
		r.URL = t.Source()
		t.Release()
		if !complete && r.URL == "" {
			return nil, status.Errorf(codes.NotFound, "%s is not complete on this node, and no URL says where the rest is", r.ID)
		}
		r.Authorized = complete
	}
	h, err := s.o.Engine.Open(ctx, r)
	if errors.Is(err, engine.ErrUnsettled) {
		r.Authorized = true // the socket's users may read what the node holds
		h, err = s.o.Engine.Open(ctx, r)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return h, nil
}

// toStatus gives an error the code that says what the caller can do about it.
func toStatus(err error) error {
	var f *engine.Failure
	code := codes.Unavailable
	switch {
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, piecestore.ErrFull):
		code = codes.ResourceExhausted
	case errors.As(err, &f) && f.Status == http.StatusUnauthorized:
		code = codes.Unauthenticated
	case errors.As(err, &f) && f.Status == http.StatusForbidden:
		code = codes.PermissionDenied
	case errors.As(err, &f) && (f.Status == http.StatusNotFound || f.Status == http.StatusGone):
		code = codes.NotFound
	case errors.As(err, &f) && f.Permanent:
		code = codes.DataLoss
	}
	return status.Error(code, err.Error())
}

// Open makes a task available.
func (s *Service) Open(ctx context.Context, r *apiv1.OpenRequest) (*apiv1.TaskStatus, error) {
	h, err := s.open(ctx, "", r.Source, r.Priority, r.Whole)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return statusOf(h), nil
}

// statusOf describes a task that is open.
func statusOf(h *engine.Handle) *apiv1.TaskStatus {
	p, _ := h.Progress()
	meta := h.Meta()
	st := &apiv1.TaskStatus{
		TaskId: string(h.ID()), Table: wire.FromTable(h.Table()),
		HeldBytes: p.HeldBytes, HeldPieces: uint32(p.HeldPieces), Pieces: uint32(h.Table().Count()), // #nosec G115 -- piece counts
		Complete: p.Complete, Active: p.Active,
		FromPeers: p.From[engine.FromPeer], FromSupernode: p.From[engine.FromSupernode], FromOrigin: p.From[engine.FromOrigin],
		Etag: meta.ETag, ContentType: meta.ContentType,
	}
	if p.Err != nil {
		st.Error = p.Err.Error()
	}
	return st
}

// chunk is how much one message of Read carries, in bytes.
const chunk = 256 << 10

// sink sends what is written to it on a stream.
type sink struct {
	stream grpc.ServerStreamingServer[apiv1.ReadChunk]
}

// Write sends b in messages of at most chunk bytes.
func (s sink) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		n := min(len(b)-sent, chunk)
		if err := s.stream.Send(&apiv1.ReadChunk{Data: b[sent : sent+n]}); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(b), nil
}

// Read streams a verified range.
func (s *Service) Read(r *apiv1.ReadRequest, stream grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
	whole := r.Offset == 0 && r.Length <= 0
	h, err := s.open(stream.Context(), r.TaskId, r.Source, r.Priority, whole)
	if err != nil {
		return err
	}
	defer h.Close()
	size := h.Table().Length
	if r.Offset < 0 || r.Offset > size {
		return status.Errorf(codes.OutOfRange, "offset %d of %s: it has %d bytes", r.Offset, h.ID(), size)
	}
	n := size - r.Offset
	if r.Length > 0 {
		n = min(n, r.Length)
	}
	if !whole {
		if err := h.Want([]engine.Range{{Offset: r.Offset, Length: n}}); err != nil {
			return toStatus(err)
		}
	}
	if _, err := h.Copy(stream.Context(), sink{stream}, r.Offset, n); err != nil {
		return toStatus(err)
	}
	return nil
}

// Prefetch asks for ranges without waiting for them.
func (s *Service) Prefetch(ctx context.Context, r *apiv1.PrefetchRequest) (*apiv1.TaskStatus, error) {
	h, err := s.open(ctx, r.TaskId, r.Source, r.Priority, len(r.Ranges) == 0)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var ranges []engine.Range
	for _, x := range r.Ranges {
		ranges = append(ranges, engine.Range{Offset: x.Offset, Length: x.Length})
	}
	if err := h.Want(ranges); err != nil {
		return nil, toStatus(err)
	}
	return statusOf(h), nil
}

// watchEvery is the least time between two messages of Watch.
const watchEvery = 100 * time.Millisecond

// Watch sends the task's status as it changes.
func (s *Service) Watch(r *apiv1.WatchRequest, stream grpc.ServerStreamingServer[apiv1.TaskStatus]) error {
	h, err := s.open(stream.Context(), r.TaskId, nil, apiv1.Priority_PRIORITY_PREFETCH, false)
	if err != nil {
		return err
	}
	defer h.Close()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		p, news := h.Progress()
		if err := stream.Send(statusOf(h)); err != nil {
			return err
		}
		if p.Complete || p.Err != nil || news == nil {
			return nil
		}
		select {
		case <-news:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// ListTasks lists what the store has.
func (s *Service) ListTasks(context.Context, *apiv1.ListTasksRequest) (*apiv1.ListTasksResponse, error) {
	resp := &apiv1.ListTasksResponse{}
	for _, i := range s.o.Store.List() {
		st := &apiv1.TaskStatus{
			TaskId: string(i.ID), Table: &apiv1.Table{Length: i.Length}, HeldBytes: i.HeldBytes,
			HeldPieces: uint32(i.HeldPieces), Pieces: uint32(i.Pieces), // #nosec G115 -- piece counts
			Complete: i.Complete, Source: i.Source, LastAccessUnix: i.LastAccess.Unix(), Active: i.Refs > 0,
		}
		if !i.PinnedUntil.IsZero() {
			st.PinnedUntilUnix = i.PinnedUntil.Unix()
		}
		resp.Tasks = append(resp.Tasks, st)
	}
	return resp, nil
}

// RemoveTask deletes a task.
func (s *Service) RemoveTask(_ context.Context, r *apiv1.RemoveTaskRequest) (*apiv1.RemoveTaskResponse, error) {
	id, err := task.ParseID(r.TaskId)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	switch err := s.o.Store.Remove(id); {
	case err == nil:
		return &apiv1.RemoveTaskResponse{}, nil
	case errors.Is(err, piecestore.ErrNotFound):
		return nil, status.Errorf(codes.NotFound, "%s is not on this node", id)
	case errors.Is(err, piecestore.ErrInUse):
		return nil, status.Errorf(codes.FailedPrecondition, "%s is in use: try again when its downloads and readers have ended", id)
	default:
		return nil, status.Error(codes.Internal, err.Error())
	}
}

// CacheUsage tells how full the store is.
func (s *Service) CacheUsage(context.Context, *apiv1.CacheUsageRequest) (*apiv1.CacheUsageResponse, error) {
	u := s.o.Store.Usage()
	return &apiv1.CacheUsageResponse{
		Bytes: u.Bytes, Limit: u.Limit, PinnedBytes: u.PinnedBytes, Free: u.Free, Tasks: uint32(u.Tasks), // #nosec G115 -- a count
	}, nil
}

// CachePrune evicts unused tasks.
func (s *Service) CachePrune(_ context.Context, r *apiv1.CachePruneRequest) (*apiv1.CachePruneResponse, error) {
	freed, removed, err := s.o.Store.Prune(max(r.TargetBytes, 0))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &apiv1.CachePruneResponse{FreedBytes: freed}
	for _, id := range removed {
		resp.Removed = append(resp.Removed, string(id))
	}
	return resp, nil
}
