package snapshots_test

import (
	"bytes"
	"context"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	cdimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

const pluginName = "damselfly"

// containerd is what of containerd stands between a client and a snapshotter.
type containerd struct {
	db *metadata.DB

	mu      sync.Mutex
	fetched []digest.Digest // layers
}

func newContainerd(t testing.TB, dir string, sn cdsnapshots.Snapshotter) *containerd {
	t.Helper()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db := metadata.NewDB(b, store, map[string]cdsnapshots.Snapshotter{pluginName: sn})
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close containerd's database: %v", err)
		}
	})
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &containerd{db: db}
}

func (c *containerd) snapshotter() cdsnapshots.Snapshotter { return c.db.Snapshotter(pluginName) }

func inNamespace(t testing.TB, name string) context.Context {
	return namespaces.WithNamespace(t.Context(), name)
}

// pull does what containerd does after it has resolved an image: it hands the
// image to its unpacker.
func (c *containerd) pull(ctx context.Context, im *image, opts ...unpack.UnpackerOpt) error {
	return c.pullWith(ctx, im, nil, opts...)
}

func (c *containerd) pullWith(ctx context.Context, im *image, capabilities []string, opts ...unpack.UnpackerOpt) error {
	cs := c.db.ContentStore()
	h := snapshotters.AppendInfoHandlerWrapper(imageName)(cdimages.HandlerFunc(
		func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if cdimages.IsLayerType(d.MediaType) {
				c.mu.Lock()
				c.fetched = append(c.fetched, d.Digest)
				c.mu.Unlock()
			}
			err := content.WriteBlob(ctx, cs, d.Digest.String(), bytes.NewReader(im.blobs[d.Digest]), d)
			if err != nil && !errdefs.IsAlreadyExists(err) {
				return nil, err
			}
			return cdimages.Children(ctx, cs, d)
		}))
	u, err := unpack.NewUnpacker(ctx, cs, append(opts, unpack.WithUnpackPlatform(unpack.Platform{
		Platform: platforms.All, SnapshotterKey: pluginName, Snapshotter: c.snapshotter(),
		SnapshotterCapabilities: capabilities, Applier: apply.NewFileSystemApplier(cs),
	}))...)
	if err != nil {
		return err
	}
	top := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(im.manifest), Size: int64(len(im.manifest)),
	}
	if err := cdimages.Dispatch(ctx, u.Unpack(h), nil, top); err != nil {
		return err
	}
	_, err = u.Wait()
	return err
}

func (c *containerd) fetches() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.fetched)
}

// parallel lets the unpacker unpack in parallel.
func parallel() unpack.UnpackerOpt { return unpack.WithUnpackLimiter(semaphore.NewWeighted(4)) }

// overSocket serves a snapshotter on a unix socket and returns containerd's client
// of it.
func overSocket(t testing.TB, sn cdsnapshots.Snapshotter) cdsnapshots.Snapshotter {
	t.Helper()
	dir, err := os.MkdirTemp("", "sn-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	snapshots.Register(srv, sn)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		srv.GracefulStop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), pluginName)
}

// run starts a container of an image, compares what it sees, and returns its
// mounts. Its snapshot stays.
func (c *containerd) run(ctx context.Context, t testing.TB, key string, im *image) []mount.Mount {
	t.Helper()
	mounts, err := c.snapshotter().Prepare(ctx, key, im.top())
	if err != nil {
		t.Fatalf("prepare container: %v", err)
	}
	expect(t, mounts, im.files())
	return mounts
}

// expect mounts what a snapshotter returned and compares the content.
func expect(t testing.TB, mounts []mount.Mount, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	err := mount.WithTempMount(t.Context(), mounts, func(root string) error {
		entries, err := os.ReadDir(root)
		if err != nil {
			return err
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(root, e.Name()))
			if err != nil {
				return err
			}
			got[e.Name()] = string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("read %v: %v", mounts, err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// rootOwner mounts what a snapshotter returned and returns who owns the root.
func rootOwner(t testing.TB, mounts []mount.Mount) (uid, gid uint32) {
	t.Helper()
	err := mount.WithTempMount(t.Context(), mounts, func(root string) error {
		var st unix.Stat_t
		err := unix.Stat(root, &st)
		uid, gid = st.Uid, st.Gid
		return err
	})
	if err != nil {
		t.Fatalf("mount %v: %v", mounts, err)
	}
	return uid, gid
}

// names lists all snapshots.
func names(t testing.TB, sn cdsnapshots.Snapshotter) []string {
	t.Helper()
	var out []string
	err := sn.Walk(t.Context(), func(_ context.Context, info cdsnapshots.Info) error {
		out = append(out, info.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}
