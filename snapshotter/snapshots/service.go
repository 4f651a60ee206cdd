package snapshots

import (
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/grpc"
)

// Register serves a snapshotter to containerd, which has it as a proxy plugin of
// the type "snapshot".
func Register(srv grpc.ServiceRegistrar, sn snapshots.Snapshotter) {
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(sn))
}
