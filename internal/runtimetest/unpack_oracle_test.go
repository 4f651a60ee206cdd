package runtimetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// packedImage is an image's layers as they are stored, the lowest first.
type packedImage struct {
	layers     [][]byte
	mediaTypes []string
	diffIDs    []string // digests of the layers' tars
}

// chainID is how containerd names the snapshot of the lowest n layers.
func (p *packedImage) chainID(n int) string {
	id := p.diffIDs[0]
	for _, d := range p.diffIDs[1:n] {
		id = digestOf([]byte(id + " " + d))
	}
	return id
}

// archive is an OCI layout of the lowest n layers, as a tar.
func (p *packedImage) archive(t *testing.T, n int) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(name string, data []byte) {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, data []byte) map[string]any {
		digest := digestOf(data)
		add(path.Join("blobs", strings.Replace(digest, ":", "/", 1)), data)
		return map[string]any{"mediaType": mediaType, "digest": digest, "size": len(data)}
	}
	var layers []any
	for i := range n {
		layers = append(layers, blob(p.mediaTypes[i], p.layers[i]))
	}
	config := blob("application/vnd.oci.image.config.v1+json", marshal(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": p.diffIDs[:n]},
	}))
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest := blob(manifestType, marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers,
	}))
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	add("index.json", marshal(t, map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}))
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// keepViews configures containerd not to collect the views that nothing refers
// to, but when it is told to collect.
const keepViews = `[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 1000000
  mutation_threshold = 0
  startup_delay = "24h"
  schedule_delay = "0s"
`

// unpack has containerd unpack the lowest n layers with a snapshotter.
func (c *containerd) unpack(t *testing.T, p *packedImage, n int, snapshotter string) error {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(name, p.archive(t, n), 0o600); err != nil {
		t.Fatal(err)
	}
	// It may take longer than command waits.
	cmd := c.command(t.Context(), c.tool, "--address", c.socket,
		"images", "import", "--snapshotter", snapshotter, "--base-name", "registry.test/"+path.Base(p.chainID(n)), name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return os.Remove(name)
}

// view mounts the snapshot of the lowest n layers and returns where.
func (c *containerd) view(t *testing.T, p *packedImage, n int, snapshotter string) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "view")
	subdir(t, at)
	key := fmt.Sprintf("%s %d", t.Name(), n)
	c.must(t, "snapshots", "--snapshotter", snapshotter, "view", key, p.chainID(n))
	mount := strings.Fields(c.must(t, "snapshots", "--snapshotter", snapshotter, "mounts", at, key))
	if out, err := command(t.Context(), testenv.Tool(t, "mount"), mount[1:]...); err != nil {
		t.Fatalf("%s: %v: %s", mount, err, out)
	}
	unmountAtEnd(t, at)
	return at
}

func unmountAtEnd(t *testing.T, at string) {
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// touched tells which directories' times follow from the layers. containerd
// sets the time of a directory that a layer lists once the layer is unpacked;
// one that it makes, or adds to or removes from, without that has the time of
// that moment.
type touched struct {
	// listed directories have an entry in the layer; used ones are parents of
	// something in it.
	listed, used map[string]bool
}

// touchedBy reads the tar of a layer. Names are those of the tar: symbolic
// links in them are not followed.
func touchedBy(t *testing.T, plain []byte) touched {
	t.Helper()
	is := touched{map[string]bool{}, map[string]bool{}}
	for tr := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return is
		} else if err != nil {
			t.Fatal(err)
		}
		name := path.Clean("/" + h.Name)[1:]
		if name == "" {
			continue // containerd ignores it
		}
		if h.Typeflag == tar.TypeDir && !strings.HasPrefix(path.Base(name), ".wh.") {
			is.listed[name] = true
		}
		for name != "." {
			name = path.Dir(name)
			is.used[name] = true
		}
	}
}
