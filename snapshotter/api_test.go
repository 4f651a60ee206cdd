package snapshotter

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/lazy"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// noBackend mounts nothing, and says that it has.
type noBackend struct{}

func (noBackend) Name() string { return "none" }
func (noBackend) Mount(context.Context, *backend.Image, string) (backend.Mount, error) {
	return noBackend{}, nil
}
func (noBackend) Adopt(context.Context, *backend.Image, string) (backend.Mount, error) {
	return nil, backend.ErrLost
}
func (noBackend) Close() error                  { return nil }
func (noBackend) Unmount(context.Context) error { return nil }

// lazyClient returns a client of the API of a node with the parts that it takes.
func lazyClient(t *testing.T, policy *trust.Policy) (*snapshotter, apiv1.LazyClient) {
	t.Helper()
	dir := t.TempDir()
	s := &snapshotter{backend: noBackend{}}
	var err error
	if s.devices, err = device.Open(device.Options{Dir: filepath.Join(dir, "devices")}); err != nil {
		t.Fatal(err)
	}
	s.images, err = lazy.New(lazy.Options{
		Dir: filepath.Join(dir, "lazy"), Devices: s.devices, Backend: s.backend,
		Registry: func(ctx context.Context, ref image.Ref) (*image.Source, error) {
			return image.Open(ctx, ref, image.Options{})
		},
		Policy: func(context.Context) (*trust.Policy, error) { return policy, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	registerLazy(srv, s)
	lis, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("unix:"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		s.images.Close()
		if err := s.devices.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, apiv1.NewLazyClient(conn)
}

// push pushes an image of one layer, with an index if there is a key, and returns
// the request for its layer.
func push(t *testing.T, r *indextest.Registry, name string, key *trust.PrivateKey) snapshots.Request {
	t.Helper()
	ref, err := image.Parse(r.Put(name, indextest.Image(t, "amd64", indextest.Files{"a": indextest.Noise(1, 50_000), "b": name})))
	if err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(t.Context(), ref, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close() //nolint:errcheck // only read
	if key != nil {
		if _, err := imageindex.Convert(t.Context(), src, ref, imageindex.ConvertOptions{Key: key, Dir: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
	}
	images, err := src.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return snapshots.Request{ChainID: images[0].Layers[0].DiffID.String(), Labels: map[string]string{
		"containerd.io/snapshot/cri.image-ref":       ref.String(),
		"containerd.io/snapshot/cri.manifest-digest": images[0].Descriptor.Digest.String(),
	}}
}

func TestImagesOfTheNode(t *testing.T) {
	registry := indextest.NewRegistry(t, true)
	key, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	policy, err := (*trust.Policy)(nil).With(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	s, client := lazyClient(t, policy)
	good, plain := push(t, registry, "good", key), push(t, registry, "plain", nil)
	d := s.images.Layer(t.Context(), good)
	if !d.Lazy {
		t.Fatal(d.Reason)
	}
	s.images.Layer(t.Context(), plain)
	dir, err := s.images.Mounted(t.Context(), []snapshots.Layer{{ChainID: good.ChainID, Labels: d.Labels}})
	if err != nil {
		t.Fatal(err)
	}
	// Another lookup's image, of which only the mount is known.
	other := map[string]string{}
	for k, v := range d.Labels {
		other[k] = v
	}
	other[lazy.LabelManifest] = digest.FromString("other").String()
	if _, err := s.images.Mounted(t.Context(), []snapshots.Layer{{ChainID: digest.FromString("x").String(), Labels: other}}); err != nil {
		t.Fatal(err)
	}
	all, err := client.ListImages(t.Context(), &apiv1.ListImagesRequest{})
	if err != nil || len(all.Images) != 3 || all.Backend != "none" {
		t.Fatalf("%v, %v", all, err)
	}
	for filter, check := range map[string]func(*apiv1.LazyImage) bool{
		"/good": func(im *apiv1.LazyImage) bool {
			return im.Reason == "" && im.TrustedBy != "" && len(im.Mounts) == 1 && im.Mounts[0].Directory == dir &&
				im.Mounts[0].TotalBytes >= 50_000 && im.Mounts[0].PresentBytes == 0 && im.Mounts[0].Layers == 1
		},
		"/plain":                  func(im *apiv1.LazyImage) bool { return im.Reason != "" && len(im.Mounts) == 0 },
		other[lazy.LabelManifest]: func(im *apiv1.LazyImage) bool { return im.Reference == "" && len(im.Mounts) == 1 },
	} {
		some, err := client.ListImages(t.Context(), &apiv1.ListImagesRequest{Image: filter})
		if err != nil || len(some.Images) != 1 || !check(some.Images[0]) {
			t.Errorf("%s: %v, %v", filter, some, err)
		}
	}
}

func TestDevicesOfTheNode(t *testing.T) {
	s, client := lazyClient(t, nil)
	data := make([]byte, chunkfmt.BlockSize)
	table, err := device.NewTable(&chunkfmt.Tree{Blobs: []chunkfmt.Blob{{
		Digest: chunkfmt.Sum([]byte("blob")), Size: int64(len(data)), DeviceSize: int64(len(data)),
		Groups: []chunkfmt.Group{{Digest: chunkfmt.Sum(data), Stored: uint32(len(data)), Plain: uint32(len(data))}},
	}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.devices.Get(table)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Write(0, data); err != nil {
		t.Fatal(err)
	}
	used, err := client.DeviceUsage(t.Context(), &apiv1.DeviceUsageRequest{})
	if err != nil || used.Devices != 1 || used.Bytes == 0 || used.UsedBytes != used.Bytes || used.Free == 0 {
		t.Errorf("usage %v, %v", used, err)
	}
	if _, err := client.PruneDevices(t.Context(), &apiv1.PruneDevicesRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("too early: %v", err)
	}
	s.devices.Recovered()
	stream, err := client.VerifyDevices(t.Context(), &apiv1.VerifyDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.Error != "" || len(m.Damaged) != 0 || m.Blob != table.Blob.Digest.String() {
		t.Errorf("verified %v, %v", m, err)
	}
	d.Release()
	freed, err := client.PruneDevices(t.Context(), &apiv1.PruneDevicesRequest{TargetBytes: -1})
	if err != nil || freed.FreedBytes == 0 {
		t.Errorf("freed %v, %v", freed, err)
	}
}
