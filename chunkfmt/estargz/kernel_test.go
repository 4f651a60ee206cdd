package estargz_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// TestKernelSeesLayers fills the devices of layers, mounts them, and compares
// what is there with the trees. Chunks and zeros that share blocks of the
// device are the hard part.
func TestKernelSeesLayers(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	testenv.Kernel(t, 6, 12) // mounts files
	for _, s := range styles {
		t.Run(s.name, func(t *testing.T) {
			l := write(t, s, files())
			x := open(t, l, l.options())
			tree, err := chunkfmt.Merge(&x.Tree)
			if err != nil {
				t.Fatal(err)
			}
			diffs, err := content.VerifyDir(t.Context(), tree, mount(t, tree, fill(t, tree, l)), content.DirOptions{})
			if err != nil || len(diffs) > 0 {
				t.Errorf("differences %v, %v", diffs, err)
			}
		})
	}
}

// fill makes the device of a layer's blob.
func fill(t *testing.T, tree *chunkfmt.Tree, l layer) string {
	t.Helper()
	b := &tree.Blobs[0]
	device := make([]byte, b.DeviceSize)
	for i := range b.Groups {
		g := &b.Groups[i]
		if g.Codec == chunkfmt.Filler {
			continue
		}
		plain, err := content.Decode(g, false, l.blob[g.Offset:g.Offset+int64(g.Stored)], nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range g.Segments {
			copy(device[s.Device:], plain[s.Offset:s.Offset+s.Length])
		}
	}
	return file(t, "device", device)
}

func file(t *testing.T, name string, p []byte) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// mount mounts the image of a tree with one device where nobody else sees it.
func mount(t *testing.T, tree *chunkfmt.Tree, device string) string {
	t.Helper()
	var image bytes.Buffer
	if _, err := erofs.Write(&image, tree, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	check(err)
	defer func() { _ = unix.Close(fsfd) }()
	check(unix.FsconfigSetString(fsfd, "source", file(t, "image", image.Bytes())))
	check(unix.FsconfigSetString(fsfd, "device", device))
	check(unix.FsconfigSetFlag(fsfd, "ro"))
	check(unix.FsconfigCreate(fsfd))
	root, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	check(err)
	t.Cleanup(func() { _ = unix.Close(root) }) // ends the mount, too
	return fmt.Sprintf("/proc/self/fd/%d", root)
}
