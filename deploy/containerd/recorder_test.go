package containerd

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
)

// recorder is an overlayfs snapshotter that records the labels with which layers
// are prepared.
type recorder struct {
	snapshots.Snapshotter

	mu     sync.Mutex
	labels []map[string]string
}

// startRecorder serves a recorder on a socket until the test ends.
func startRecorder(t *testing.T, socket, root string) *recorder {
	t.Helper()
	inner, err := overlay.NewSnapshotter(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Close() })
	r := &recorder{Snapshotter: inner}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(r))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return r
}

// Prepare records the labels.
func (r *recorder) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	r.labels = append(r.labels, info.Labels)
	r.mu.Unlock()
	return r.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// all returns the labels so far.
func (r *recorder) all() []map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.labels)
}
