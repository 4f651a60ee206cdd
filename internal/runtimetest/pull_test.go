package runtimetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestContainerdPullsThroughThreeNodes(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	img := newImage(t, "team/app", 24<<20, 1)
	img.push(t, registry.url)
	cluster := newCluster(t, front.URL, clusterOptions{})
	nodes := make([]*containerd, 3)
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i+1)
		nodes[i] = startContainerd(t, name, cluster.node(t, name).mirror)
	}
	pullAll := func(t *testing.T) {
		t.Helper()
		var ends []<-chan result
		for _, c := range nodes {
			ends = append(ends, c.beginPull(t, img, ""))
		}
		for i, end := range ends {
			if r := <-end; r.err != nil {
				t.Fatalf("pull on node %d: %v\n%s", i+1, r.err, r.out)
			}
		}
		for _, c := range nodes {
			c.check(t, img)
		}
	}

	pullAll(t)
	front.checkSentOnce(t, img)

	for _, c := range nodes {
		c.forget(t, img)
	}
	front.reset()
	pullAll(t)
	if n := front.blobBytes(); n != 0 {
		t.Errorf("the registry sent %d bytes of blobs for images that all nodes had", n)
	}
}

// TestDfctlNodeSetup has the mirror's configuration written, and taken back, by
// dfctl.
func TestDfctlNodeSetup(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	img := newImage(t, "team/setup", 1<<20, 2)
	img.push(t, registry.url)
	node := newCluster(t, front.URL, clusterOptions{}).node(t, "node-1")
	runtime := startContainerd(t, "node-1", "")
	root := subdir(t, runtime.dir, "host")
	subdir(t, root, "var/lib/damselfly") // as the package leaves it
	const certs = "/etc/containerd/certs.d"
	runtime.hosts = filepath.Join(root, certs)
	before := treeOf(t, subdir(t, root))
	dfctl := func(args ...string) {
		t.Helper()
		if out, err := command(t.Context(), program(t, "dfctl"), append([]string{"node"}, args...)...); err != nil {
			t.Fatalf("dfctl node %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}

	dfctl("setup", "--runtime", "containerd", "--root", root, "--config-path", certs, "--mirror", node.mirror)
	dfctl("status", "--runtime", "containerd", "--root", root)
	runtime.mustPull(t, img, "")
	runtime.check(t, img)
	front.checkSentOnce(t, img)

	runtime.forget(t, img)
	dfctl("remove", "--runtime", "containerd", "--root", root)
	if _, err := os.Stat(filepath.Join(root, certs)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s after remove: %v", certs, err)
	}
	for name, now := range treeOf(t, root) {
		if then, ok := before[name]; !ok || now != then {
			t.Errorf("after remove %s is %q and was %q", name, now, then)
		}
	}
	front.reset()
	if out, err := runtime.pull(t, img, ""); err == nil {
		t.Errorf("without the mirror an image came from somewhere:\n%s", out)
	}
	if hits, _ := front.seen(""); len(hits) != 0 {
		t.Errorf("after remove the registry was asked: %+v", hits)
	}
}

// TestSkopeoPathForm pulls in the form in which CRI-O and Podman use a mirror:
// the registry is the first element of the path.
func TestSkopeoPathForm(t *testing.T) {
	needRuntimes(t)
	skopeo := testenv.Tool(t, "skopeo")
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	img := newImage(t, "team/path", 1<<20, 3)
	img.push(t, registry.url)
	node := newCluster(t, front.URL, clusterOptions{}).node(t, "node-1")

	dir := filepath.Join(t.TempDir(), "layout")
	out, err := command(t.Context(), skopeo, "copy", "--insecure-policy", "--src-tls-verify=false",
		"docker://"+node.mirror+"/"+img.ref(), "oci:"+dir+":"+img.tag)
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	for digest, blob := range img.blobs {
		got, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:")))
		if err != nil || string(got) != string(blob) {
			t.Errorf("%s: %d bytes, %v; want %d", digest, len(got), err, len(blob))
		}
	}
	front.checkSentOnce(t, img)
}
