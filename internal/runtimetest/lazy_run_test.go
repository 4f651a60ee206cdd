package runtimetest

import (
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
)

// overlayTrees are what overlayfs makes of images, by their repositories.
func overlayTrees(t *testing.T, images ...*lazyImage) map[string]map[string]object {
	t.Helper()
	c := startContainerd(t, "overlay", "", keepViews)
	trees := map[string]map[string]object{}
	for _, img := range images {
		n := len(img.layers)
		if err := c.unpack(t, img.packed, n, overlay); err != nil {
			t.Fatal(err)
		}
		trees[img.repo] = walk(t, c.view(t, img.packed, n, overlay))
	}
	return trees
}

// checkSame compares a lazy mount with what overlayfs has made of the image.
func checkSame(t *testing.T, what string, want, got map[string]object) {
	t.Helper()
	report(t, what, differences(want, got, func(name string, f field, want, _ object) bool {
		// A directory's links tell where overlayfs has merged; the time of the root
		// is that of when it was unpacked.
		return f == fLinks && want[fType] == typeDir || f == fMtime && name == "."
	}))
}

// TestLazyRuns runs containers of images that are mounted and not unpacked, on
// both backends and with both ways in which containerd asks for snapshots, and
// compares their trees with what overlayfs makes of them.
func TestLazyRuns(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	small, hard := newLazyImage(t, "team/small", [][]member{{dir("data"), file("data/x", "x")}}, asGzip), newHard(t, "team/hard")
	site.push(t, small, hard)
	want := overlayTrees(t, small, hard)
	cluster := site.cluster(t, clusterOptions{})
	modern := builtRelease(t, containerdbuild.V2_3)
	for _, o := range []struct {
		name string
		lazyOptions
	}{
		{"erofs-1.6", lazyOptions{backend: "erofs"}},
		{"fuse-1.6", lazyOptions{backend: "fuse"}},
		{"erofs-2.3", lazyOptions{backend: "erofs", release: modern}},
		{"fuse-2.3", lazyOptions{backend: "fuse", release: modern}},
	} {
		t.Run(o.name, func(t *testing.T) {
			o.trust = site.trust
			n := cluster.lazyNode(t, o.name, o.lazyOptions)
			for _, img := range []*lazyImage{small, hard} {
				n.mustPull(t, img.image)
				n.checkLazy(t, img, len(img.layers))
				n.checkNotPulled(t, img)
				n.greet(t, img.image)
				checkSame(t, "lazy "+img.repo, want[img.repo], walk(t, n.view(t, img, len(img.layers))))
			}
			n.checkDeviceNode(t, hard)
		})
	}
}

// TestLazyCompletes compares what was completed in the background, where what
// asks the kernel is gone, and runs containers with the registry down.
func TestLazyCompletes(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	img := newHard(t, "team/hard")
	site.push(t, img)
	want := overlayTrees(t, img)
	cluster := site.cluster(t, clusterOptions{})
	for _, b := range backends {
		t.Run(b, func(t *testing.T) {
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust, args: []string{"--background"}})
			n.mustPull(t, img.image)
			n.awaitComplete(t, img.image)
			checkSame(t, "complete", want[img.repo], walk(t, n.view(t, img, len(img.layers))))
			n.greet(t, img.image)
			if b == "erofs" {
				n.checkUnmarked(t)
			}
		})
	}
}

// checkLazy fails unless exactly the lowest layers of an image are lazy.
func (n *lazyNode) checkLazy(t *testing.T, img *lazyImage, lazy int) {
	t.Helper()
	for i := range img.layers {
		info := n.info(t, img, i+1)
		if is := info["containerd.io/snapshot/remote"] != ""; is != (i < lazy) {
			t.Errorf("layer %d of %s: lazy is %t; labels %v", i, img.repo, is, info)
		}
	}
}

// reason is why the topmost layer of an image is not lazy.
func (n *lazyNode) reason(t *testing.T, img *lazyImage, layers int) string {
	t.Helper()
	return n.info(t, img, layers)["containerd.io/snapshot/damselfly.reason"]
}

// checkNotPulled fails if containerd has the content of a layer.
func (n *lazyNode) checkNotPulled(t *testing.T, img *lazyImage) {
	t.Helper()
	have := n.runtime.must(t, "content", "ls", "-q")
	for _, digest := range img.layers {
		if strings.Contains(have, digest) {
			t.Errorf("containerd has fetched layer %s of %s", digest, img.repo)
		}
	}
}
