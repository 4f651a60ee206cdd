package nodetest

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
)

// Lazy is a snapshotter as far as dfctl sees it. Set its fields between calls
// only.
type Lazy struct {
	apiv1.UnimplementedLazyServer

	Socket  string
	Images  []*apiv1.LazyImage
	Usage   apiv1.DeviceUsageResponse
	Devices []*apiv1.VerifyDevicesResponse
	// PruneError is what PruneDevices fails with.
	PruneError error
}

// StartLazy runs a snapshotter until the end of the test.
func StartLazy(t testing.TB) *Lazy {
	t.Helper()
	l := &Lazy{}
	l.Socket = serve(t, "snapshotter.sock", func(s *grpc.Server) { apiv1.RegisterLazyServer(s, l) })
	return l
}

// ListImages implements apiv1.LazyServer.
func (l *Lazy) ListImages(_ context.Context, r *apiv1.ListImagesRequest) (*apiv1.ListImagesResponse, error) {
	resp := &apiv1.ListImagesResponse{Backend: "erofs"}
	for _, im := range l.Images {
		if r.Image == "" || im.Manifest == r.Image || im.Reference != "" && strings.Contains(im.Reference, r.Image) {
			resp.Images = append(resp.Images, im)
		}
	}
	return resp, nil
}

// DeviceUsage implements apiv1.LazyServer.
func (l *Lazy) DeviceUsage(context.Context, *apiv1.DeviceUsageRequest) (*apiv1.DeviceUsageResponse, error) {
	u := &l.Usage
	return &apiv1.DeviceUsageResponse{Bytes: u.Bytes, Limit: u.Limit, UsedBytes: u.UsedBytes, Free: u.Free, Devices: u.Devices}, nil
}

// PruneDevices implements apiv1.LazyServer: it frees all that is not mounted.
func (l *Lazy) PruneDevices(context.Context, *apiv1.PruneDevicesRequest) (*apiv1.PruneDevicesResponse, error) {
	if l.PruneError != nil {
		return nil, l.PruneError
	}
	return &apiv1.PruneDevicesResponse{FreedBytes: l.Usage.Bytes - l.Usage.UsedBytes, Devices: 2}, nil
}

// VerifyDevices implements apiv1.LazyServer.
func (l *Lazy) VerifyDevices(_ *apiv1.VerifyDevicesRequest, stream grpc.ServerStreamingServer[apiv1.VerifyDevicesResponse]) error {
	for _, d := range l.Devices {
		if err := stream.Send(d); err != nil {
			return err
		}
	}
	return nil
}
