package snapshotter

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/lazy"
)

// api is what dfctl asks of a snapshotter. It implements apiv1.LazyServer.
type api struct {
	apiv1.UnimplementedLazyServer
	s *snapshotter
}

func registerLazy(srv grpc.ServiceRegistrar, s *snapshotter) {
	apiv1.RegisterLazyServer(srv, &api{s: s})
}

// ListImages lists what containerd has asked for, and what is mounted.
func (a *api) ListImages(_ context.Context, r *apiv1.ListImagesRequest) (*apiv1.ListImagesResponse, error) {
	byManifest := map[string]*apiv1.LazyImage{}
	resp := &apiv1.ListImagesResponse{Backend: a.s.backend.Name()}
	for _, x := range a.s.images.Asked() {
		im := &apiv1.LazyImage{
			Reference: x.Reference, Manifest: x.Manifest.String(), TrustedBy: x.TrustedBy, LookedUpUnix: x.At.Unix(),
		}
		if x.Reason.Code != "" {
			im.Reason = x.Reason.String()
		}
		resp.Images = append(resp.Images, im)
		byManifest[im.Manifest] = im
	}
	a.s.images.Mounts(func(m lazy.Mounted, dir string) {
		im := byManifest[m.Manifest.String()]
		if im == nil {
			im = &apiv1.LazyImage{Manifest: m.Manifest.String()}
			resp.Images = append(resp.Images, im)
			byManifest[im.Manifest] = im
		}
		im.Mounts = append(im.Mounts, describeMount(a.s.backend.Name(), m, dir))
	})
	if r.Image != "" {
		var some []*apiv1.LazyImage
		for _, im := range resp.Images {
			if im.Manifest == r.Image || im.Reference != "" && strings.Contains(im.Reference, r.Image) {
				some = append(some, im)
			}
		}
		resp.Images = some
	}
	return resp, nil
}

func describeMount(backend string, m lazy.Mounted, dir string) *apiv1.LazyMount {
	x := &apiv1.LazyMount{Chain: m.Chain.String(), Layers: uint32(m.Layers), Backend: backend, Directory: dir} // #nosec G115 -- a count
	for _, d := range m.Devices {
		for i, g := range d.Table().Blob.Groups {
			if len(device.Places(&g)) == 0 {
				continue
			}
			x.TotalBytes += int64(g.Plain)
			if d.Has(i) {
				x.PresentBytes += int64(g.Plain)
			}
		}
	}
	return x
}

// DeviceUsage tells what the devices take.
func (a *api) DeviceUsage(context.Context, *apiv1.DeviceUsageRequest) (*apiv1.DeviceUsageResponse, error) {
	u, err := a.s.devices.Usage()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &apiv1.DeviceUsageResponse{
		Bytes: u.Bytes, UsedBytes: u.BytesInUse, Free: u.Free, Limit: int64(a.s.c.CacheSize), Devices: uint32(u.Devices), // #nosec G115 -- a count
	}, nil
}

// PruneDevices evicts what is not mounted.
func (a *api) PruneDevices(_ context.Context, r *apiv1.PruneDevicesRequest) (*apiv1.PruneDevicesResponse, error) {
	before, err := a.s.devices.Usage()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	freed, err := a.s.devices.Prune(max(r.TargetBytes, 0))
	switch {
	case errors.Is(err, device.ErrNotRecovered):
		return nil, status.Error(codes.Unavailable, "the snapshotter is still taking over mounts: try again in a moment")
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	}
	after, err := a.s.devices.Usage()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &apiv1.PruneDevicesResponse{FreedBytes: freed, Devices: uint32(max(before.Devices-after.Devices, 0))}, nil // #nosec G115 -- a count
}

// VerifyDevices checks all content on the node.
func (a *api) VerifyDevices(_ *apiv1.VerifyDevicesRequest, stream grpc.ServerStreamingServer[apiv1.VerifyDevicesResponse]) error {
	for _, info := range a.s.devices.List() {
		m := &apiv1.VerifyDevicesResponse{Blob: info.Blob.String()}
		bad, err := a.s.devices.Verify(stream.Context(), info.Key, func(done, _ int) { m.CheckedGroups = uint32(done) }) // #nosec G115 -- a count
		if stream.Context().Err() != nil {
			return stream.Context().Err()
		}
		if err != nil {
			m.Error = err.Error()
		}
		for _, g := range bad {
			m.Damaged = append(m.Damaged, uint32(g)) // #nosec G115 -- a group's number
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}
