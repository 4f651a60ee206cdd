package runtimetest

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// TestLazyRegistryDies kills the registry while an image is read: reads wait for
// it and go on.
func TestLazyRegistryDies(t *testing.T) {
	needLazy(t)
	t.Parallel()
	for i, b := range backends {
		t.Run(b, func(t *testing.T) {
			site := newLazySite(t)
			n := site.cluster(t, clusterOptions{}).lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			img := newBulk(t, "team/dies", 24, 256<<10, uint64(3000+i))
			site.push(t, img)
			n.mustPull(t, img.image)
			site.front.slow(6 << 20)
			site.front.reset()
			r := startReaders(n.view(t, img, 1), img.files)
			site.front.awaitSent(t, "/blobs/", img.size()/3)
			site.registry.kill()
			site.front.slow(0)
			site.front.awaitFailed(t, "/blobs/")
			site.registry.again(t)
			r.check(t)
			n.greet(t, img.image)
		})
	}
}

// TestLazyGarbage damages what one holder has on its disk: what another node reads
// comes from elsewhere then.
func TestLazyGarbage(t *testing.T) {
	needLazy(t)
	t.Parallel()
	for i, holder := range []string{"first", "supernode"} {
		t.Run(holder, func(t *testing.T) {
			site := newLazySite(t)
			img := newBulk(t, "team/garbage", 16, 256<<10, uint64(3100+i))
			site.push(t, img)
			cluster := site.cluster(t, clusterOptions{})
			first := cluster.lazyNode(t, "first", lazyOptions{trust: site.trust})
			first.mustPull(t, img.image)
			startReaders(first.view(t, img, 1), img.files).check(t)
			second := cluster.lazyNode(t, "second", lazyOptions{trust: site.trust})
			second.mustPull(t, img.image)
			if damageContent(t, img, filepath.Join(cluster.dir, holder)) == 0 {
				t.Fatal("nothing was damaged: the test shows nothing")
			}
			startReaders(second.view(t, img, 1), img.files).check(t)
			second.greet(t, img.image)
		})
	}
}

// damageContent changes a byte in every 64 KiB of what files below directories
// have of an image's content. It returns how many files have some.
func damageContent(t *testing.T, img *lazyImage, dirs ...string) int {
	t.Helper()
	damaged := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			places := placesOf(img, data)
			if len(places) == 0 {
				return nil
			}
			damaged++
			for _, at := range places {
				overwrite(t, name, at+1000, []byte("damaged"))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return damaged
}

// placesOf returns where an image's files lie in data.
func placesOf(img *lazyImage, data []byte) (places []int64) {
	text := string(data)
	for _, name := range slices.Sorted(maps.Keys(img.files)) {
		if i := strings.Index(text, string(img.files[name][:64])); i >= 0 {
			places = append(places, int64(i))
		}
	}
	return places
}

func overwrite(t *testing.T, name string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, at)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestLazyDiskFull reads more than the disk holds: readers of what does not fit get
// errors, all else goes on, and the log says why.
func TestLazyDiskFull(t *testing.T) {
	needLazy(t)
	mkfs := testenv.Tool(t, "mkfs.ext4")
	t.Parallel()
	site := newLazySite(t)
	small, large := newBulk(t, "team/small", 4, 128<<10, 3200), newBulk(t, "team/large", 80, 512<<10, 3201)
	site.push(t, small, large)
	cluster := site.cluster(t, clusterOptions{})
	for _, b := range backends {
		t.Run(b, func(t *testing.T) {
			disk := smallDisk(t, mkfs, 24<<20)
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust, data: disk, args: []string{"--read-timeout", "10s"}})
			n.mustPull(t, small.image)
			before := n.view(t, small, 1)
			startReaders(before, small.files).check(t)
			n.mustPull(t, large.image)
			r := startReaders(n.view(t, large, 1), large.files)
			r.end(t)
			reportFirst(t, "wrong bytes", r.wrong)
			if len(r.failed) == 0 {
				t.Error("everything fits: the test shows nothing")
			}
			for _, f := range r.failed {
				if !strings.Contains(f, "input/output error") {
					t.Errorf("a reader got %q, want EIO", f)
				}
			}
			n.snapshotter.logged(t, "no space left on device")
			dropPages(t, before, small.files)
			startReaders(before, small.files).check(t)
		})
	}
}

// smallDisk mounts a file system of n bytes.
func smallDisk(t *testing.T, mkfs string, n int64) string {
	t.Helper()
	dir := shortDir(t)
	disk, at := filepath.Join(dir, "disk"), subdir(t, dir, "at")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(n), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{mkfs, "-q", "-F", "-O", "^has_journal", disk}, {testenv.Tool(t, "mount"), "-o", "loop", disk, at}} {
		if out, err := command(t.Context(), args[0], args[1:]...); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { unmountBelow(t, dir) })
	return filepath.Join(at, "data")
}

// TestLazyDamagedDevice changes content on the node's disk: it is found when the
// node is told to look, and fetched again.
func TestLazyDamagedDevice(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	img := newBulk(t, "team/damaged", 16, 256<<10, 3300)
	site.push(t, img)
	cluster := site.cluster(t, clusterOptions{})
	for _, b := range backends {
		t.Run(b, func(t *testing.T) {
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			n.mustPull(t, img.image)
			root := n.view(t, img, 1)
			startReaders(root, img.files).check(t)
			if got := n.verify(t); got != 0 {
				t.Errorf("%d groups are damaged before anything was done", got)
			}
			if damaged := damageContent(t, img, filepath.Join(n.data, "devices")); damaged != 1 {
				t.Fatalf("%d devices were damaged", damaged)
			}
			if got := n.verify(t); got == 0 {
				t.Error("the damage was not found")
			}
			n.awaitComplete(t, img.image) // what was damaged has come again
			if got := n.verify(t); got != 0 {
				t.Errorf("%d groups are damaged after that", got)
			}
			dropPages(t, root, img.files)
			startReaders(root, img.files).check(t)
			n.greet(t, img.image)
		})
	}
}

// verify has the node check all content. It returns how many groups are damaged.
func (n *lazyNode) verify(t *testing.T) (damaged int) {
	t.Helper()
	stream, err := n.lazyClient(t).VerifyDevices(t.Context(), &apiv1.VerifyDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return damaged
		}
		if err != nil || m.Error != "" {
			t.Fatalf("verify: %v %s", err, m.GetError())
		}
		damaged += len(m.Damaged)
	}
}
