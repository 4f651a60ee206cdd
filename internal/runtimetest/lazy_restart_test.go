package runtimetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// TestLazyOffline restarts what serves complete images while registry and
// supernode are down: what is mounted goes on, and containers start.
func TestLazyOffline(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	img, tiny := newBulk(t, "team/offline", 24, 128<<10, 2001), newTiny(t, "team/tiny")
	site.push(t, img, tiny)
	cluster := site.cluster(t, clusterOptions{})
	nodes := map[string]*lazyNode{}
	for _, b := range backends {
		n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
		for _, x := range []*lazyImage{img, tiny} {
			n.mustPull(t, x.image)
			walk(t, n.view(t, x, 1))
			n.awaitComplete(t, x.image)
		}
		nodes[b] = n
	}
	site.registry.kill()
	cluster.supernode.kill()
	for _, b := range backends {
		for _, names := range [][]string{
			{"snapshotter"}, {"containerd"}, {"dfdaemon"}, {"keeper"}, {"snapshotter", "keeper", "dfdaemon", "containerd"},
		} {
			t.Run(b+"-"+strings.Join(names, "+"), func(t *testing.T) {
				n := nodes[b]
				root := n.view(t, img, 1)
				dropPages(t, root, img.files)
				r := startReaders(root, img.files)
				n.killAll(names)
				n.restart(t, names)
				r.check(t)
				startReaders(n.view(t, img, 1), img.files).check(t)
				n.greet(t, img.image)
				n.greet(t, tiny.image)
			})
		}
		t.Run(b+"-reboot", func(t *testing.T) {
			n := nodes[b]
			n.reboot(t)
			startReaders(n.view(t, img, 1), img.files).check(t)
			n.greet(t, img.image)
			n.greet(t, tiny.image)
		})
	}
}

// reboot ends all of a node and takes its mounts away, as the end of the machine
// does, and starts it again.
func (n *lazyNode) reboot(t *testing.T) {
	t.Helper()
	all := []string{"containerd", "snapshotter", "dfdaemon", "keeper"}
	n.killAll(all)
	endSpare(t, n.spareSocket())
	unmountBelow(t, n.data)
	unmountBelow(t, n.runtime.dir)
	n.restart(t, all)
}

// TestLazyLeavesNothing removes images whose snapshotter has been killed, and
// looks for what is left of them.
func TestLazyLeavesNothing(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	img, other := newBulk(t, "team/removed", 8, 64<<10, 2101), newTiny(t, "team/stays")
	site.push(t, img, other)
	cluster := site.cluster(t, clusterOptions{})
	for _, b := range backends {
		t.Run(b, func(t *testing.T) {
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			n.mustPull(t, img.image)
			n.mustPull(t, other.image)
			n.greet(t, img.image)
			n.greet(t, other.image)
			mounts := filepath.Join(n.data, "lazy", "mounts")
			if got := mountsBelow(t, mounts); len(got) != 2 {
				t.Errorf("mounted are %q, want 2", got)
			}
			n.killAll([]string{"snapshotter"})
			plantLeftovers(t, mounts, img)
			n.restart(t, []string{"snapshotter"})
			n.runtime.must(t, "images", "rm", "--sync", img.ref())
			testenv.Eventually(t, func() bool {
				left, err := os.ReadDir(mounts)
				return err == nil && len(left) == 1 && len(mountsBelow(t, mounts)) == 1
			}, "only the other image is left in "+mounts)
			n.greet(t, other.image)
			n.mustPull(t, img.image)
			n.greet(t, img.image)
		})
	}
}

// plantLeftovers makes what a crash may leave: a copy of a chain's directory
// whose snapshot was never made, and one without content.
func plantLeftovers(t *testing.T, mounts string, img *lazyImage) {
	t.Helper()
	from := filepath.Join(mounts, strings.TrimPrefix(img.packed.chainID(1), "sha256:"))
	to := filepath.Join(mounts, strings.Repeat("ab", 32))
	subdir(t, to, "root")
	for _, name := range []string{"mount.json", "meta.erofs"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	subdir(t, mounts, strings.Repeat("cd", 32))
}

// TestLazyUnmountedUnderneath takes mounts away that containers are to use.
func TestLazyUnmountedUnderneath(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	img := newBulk(t, "team/underneath", 8, 64<<10, 2201)
	site.push(t, img)
	cluster := site.cluster(t, clusterOptions{})
	for _, b := range backends {
		t.Run(b, func(t *testing.T) {
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			n.mustPull(t, img.image)
			n.greet(t, img.image)
			root := filepath.Join(n.data, "lazy", "mounts", strings.TrimPrefix(img.packed.chainID(1), "sha256:"), "root")
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			n.greet(t, img.image)
			startReaders(n.view(t, img, 1), img.files).check(t)
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(root); err != nil {
				t.Fatal(err)
			}
			n.greet(t, img.image)
		})
	}
}

// TestLazyOneSnapshotterPerDirectory starts a second one where the first one
// works.
func TestLazyOneSnapshotterPerDirectory(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	img := newTiny(t, "team/one")
	site.push(t, img)
	n := site.cluster(t, clusterOptions{}).lazyNode(t, "node-1", lazyOptions{trust: site.trust})
	n.mustPull(t, img.image)
	args := append([]string{}, n.snapshotter.args...)
	args = append(args, "--address", n.socket+"2", "--http", freeAddress(t))
	out, err := command(t.Context(), n.snapshotter.path, args...)
	if err == nil || !strings.Contains(out, n.data) || !strings.Contains(out, "another") {
		t.Errorf("a second snapshotter: %v\n%s", err, out)
	}
	// The same socket, too: the first one goes on to serve it.
	args = append(args, "--address", n.socket, "--data-dir", filepath.Join(n.cluster.dir, "other-data"))
	if out, err = command(t.Context(), n.snapshotter.path, args...); err == nil || !strings.Contains(out, n.socket) {
		t.Errorf("a second snapshotter on the socket: %v\n%s", err, out)
	}
	n.greet(t, img.image)
}
