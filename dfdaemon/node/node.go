package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/authority"
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
	// Authority reads registries for programs without credentials; nil: their
	// sources are taken like others.
	Authority *authority.Authority
	// Swarm is the link to the supernode; nil: there is none.
	Swarm Swarm
	// Info is what the service tells of the daemon, besides what Swarm knows.
	Info *apiv1.InfoResponse
	Log  *slog.Logger
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

// toStatus gives an error the code that says what the caller can do about it.
func toStatus(err error) error {
	var f *engine.Failure
	if _, ok := status.FromError(err); ok {
		return err // it has a code
	}
	code := codes.Unavailable
	switch {
	case errors.Is(err, authority.ErrNotAllowed):
		code = codes.PermissionDenied
	case errors.Is(err, authority.ErrInvalid):
		code = codes.InvalidArgument
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
	return s.status(ctx, "", r.Source, engine.Request{Priority: pieces.Priority(r.Priority), Whole: r.Whole})
}

// status opens what a message names, and describes it.
func (s *Service) status(ctx context.Context, id string, src *apiv1.Source, req engine.Request) (st *apiv1.TaskStatus, err error) {
	err = s.use(ctx, id, src, req, func(h *engine.Handle) error {
		st = statusOf(h)
		return nil
	})
	return st, err
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

// chunk is how much one message of Read carries, in bytes. gRPC takes the memory
// for a message of more than 32 KiB from buffers of 1 MiB, and clears all of it:
// messages of 64 KiB would spend more time on that than on anything else.
const chunk = 1<<20 - 1<<10

// chunks are buffers of Read.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// sink sends what is written to it on a stream.
type sink struct {
	stream grpc.ServerStreamingServer[apiv1.ReadChunk]
}

var (
	_ io.Writer     = sink{}
	_ io.ReaderFrom = sink{}
)

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

// ReadFrom sends what r has in messages as large as they may be, where io.Copy
// would make one of every 32 KiB.
func (s sink) ReadFrom(r io.Reader) (sent int64, err error) {
	buf, ok := chunks.Get().(*[chunk]byte)
	if !ok {
		buf = new([chunk]byte)
	}
	defer chunks.Put(buf)
	for {
		n, err := io.ReadFull(r, buf[:])
		m, failed := s.Write(buf[:n])
		sent += int64(m)
		switch {
		case failed != nil:
			return sent, failed
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return sent, nil
		case err != nil:
			return sent, err
		}
	}
}

// Read streams a verified range.
func (s *Service) Read(r *apiv1.ReadRequest, stream grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
	whole := r.Offset == 0 && r.Length <= 0
	req := engine.Request{Priority: pieces.Priority(r.Priority), Whole: whole}
	if r.Offset >= 0 && r.Length > 0 {
		req.Ranges = []engine.Range{{Offset: r.Offset, Length: r.Length}}
	}
	var sent int64
	return s.use(stream.Context(), r.TaskId, r.Source, req, func(h *engine.Handle) error {
		size := h.Table().Length
		if r.Offset < 0 || r.Offset > size {
			return status.Errorf(codes.OutOfRange, "offset %d of %s: it has %d bytes", r.Offset, h.ID(), size)
		}
		off, n := r.Offset+sent, size-r.Offset-sent
		if r.Length > 0 {
			n = min(n, r.Length-sent)
		}
		if !whole && len(req.Ranges) == 0 {
			if err := h.Want([]engine.Range{{Offset: off, Length: n}}); err != nil {
				return err
			}
		}
		m, err := h.Copy(stream.Context(), sink{stream}, off, n)
		sent += m
		return err
	})
}

// Prefetch asks for ranges without waiting for them.
func (s *Service) Prefetch(ctx context.Context, r *apiv1.PrefetchRequest) (*apiv1.TaskStatus, error) {
	req := engine.Request{Priority: pieces.Priority(r.Priority), Whole: len(r.Ranges) == 0}
	for _, x := range r.Ranges {
		req.Ranges = append(req.Ranges, engine.Range{Offset: x.Offset, Length: x.Length})
	}
	return s.status(ctx, r.TaskId, r.Source, req)
}

// watchEvery is the least time between two messages of Watch.
const watchEvery = 100 * time.Millisecond

// Watch sends the task's status as it changes.
func (s *Service) Watch(r *apiv1.WatchRequest, stream grpc.ServerStreamingServer[apiv1.TaskStatus]) error {
	req := engine.Request{Priority: pieces.Prefetch}
	return s.use(stream.Context(), r.TaskId, nil, req, func(h *engine.Handle) error { return watch(h, stream) })
}

func watch(h *engine.Handle, stream grpc.ServerStreamingServer[apiv1.TaskStatus]) error {
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
