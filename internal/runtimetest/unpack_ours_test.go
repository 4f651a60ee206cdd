package runtimetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
)

// variant is a way to build indexes and blobs.
type variant struct {
	name string
	o    build.Options
}

// variants differ in everything that says where content lies. Those of tiny
// groups make images of many devices' blocks.
var variants = []variant{
	{"default", build.Options{}},
	{"tiny", build.Options{Mode: build.NewBlob, ChunkSize: 4 << 10, GroupSize: 16 << 10, InlineMax: -1}},
	{"plain", build.Options{Mode: build.NewBlob, Codec: build.Plain, ChunkSize: 16 << 10, GroupSize: 64 << 10, InlineMax: 4096}},
	{"as image", build.Options{Mode: build.AsImage, ChunkSize: 64 << 10, GroupSize: 64 << 10}},
}

// converted is what was built of an image's layers.
type converted struct {
	trees   []*chunkfmt.Tree // decoded, one for each layer
	blobs   map[chunkfmt.Digest]string
	inPlace int // layers that are their own blobs
	devices map[chunkfmt.Digest]string
	dir     string
}

// build builds the lowest n layers.
func (v variant) build(t *testing.T, p *packedImage, n int) (*converted, error) {
	t.Helper()
	b := &converted{blobs: map[chunkfmt.Digest]string{}, devices: map[chunkfmt.Digest]string{}, dir: t.TempDir()}
	var layers []build.Layer
	for i, data := range p.layers[:n] {
		diffID, err := chunkfmt.ParseDigest(p.diffIDs[i])
		if err != nil {
			t.Fatal(err)
		}
		digest := chunkfmt.Sum(data)
		layers = append(layers, build.Layer{
			Name: fmt.Sprintf("layer %d", i+1), Digest: digest, Size: int64(len(data)), DiffID: diffID,
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		})
		b.blobs[digest] = filepath.Join(b.dir, "layer-"+digest.String())
		if err := os.WriteFile(b.blobs[digest], data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	result, err := build.Build(t.Context(), layers, b.dir, v.o)
	if err != nil {
		return nil, err
	}
	for i, l := range result.Layers {
		for _, f := range l.Blobs {
			b.blobs[f.Digest] = f.Path
		}
		if l.Image != nil {
			b.blobs[l.Image.Digest] = l.Image.Path
		}
		if l.InPlace {
			b.inPlace++
		}
		index, err := chunkfmt.Decode(l.Encoded, chunkfmt.Limits{})
		if err != nil {
			t.Fatalf("decode the index of layer %d: %v", i+1, err)
		}
		if again, err := chunkfmt.Encode(index); err != nil || !bytes.Equal(again, l.Encoded) {
			t.Errorf("the index of layer %d is encoded to other bytes again (%v)", i+1, err)
		}
		if got := index.DiffID.String(); got != p.diffIDs[i] {
			t.Errorf("the index of layer %d has DiffID %s, want %s", i+1, got, p.diffIDs[i])
		}
		b.trees = append(b.trees, &index.Tree)
	}
	return b, nil
}

// merge returns the tree of the lowest n layers.
func (b *converted) merge(n int) (*chunkfmt.Tree, error) {
	tree, err := chunkfmt.Merge(b.trees[:n]...)
	if err != nil {
		return nil, err
	}
	return tree, tree.ValidateMerged()
}

// ReadAt implements content.Source.
func (b *converted) ReadAt(_ context.Context, blob *chunkfmt.Blob, p []byte, off int64) error {
	f, err := os.Open(b.blobs[blob.Digest])
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.ReadAt(p, off)
	return err
}

// mount mounts the metadata image of a merged tree on devices that have all
// groups of their blobs, and returns where.
func (b *converted) mount(t *testing.T, tree *chunkfmt.Tree) string {
	t.Helper()
	f, err := os.CreateTemp(b.dir, "meta-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	image, err := erofs.Write(f, tree, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if image.Dropped != 0 {
		t.Errorf("the image lacks %d extended attributes", image.Dropped)
	}
	var devices []string
	for _, blob := range image.Devices {
		devices = append(devices, b.device(t, &tree.Blobs[blob]))
	}
	return mountEROFS(t, f.Name(), devices)
}

// device fills the device of a blob.
func (b *converted) device(t *testing.T, blob *chunkfmt.Blob) string {
	t.Helper()
	if name, ok := b.devices[blob.Digest]; ok {
		return name
	}
	f, err := os.CreateTemp(b.dir, "device-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(blob.DeviceSize); err != nil {
		t.Fatal(err)
	}
	for i := range blob.Groups {
		if err := b.fill(t.Context(), f, blob, &blob.Groups[i]); err != nil {
			t.Fatalf("blob %s, group %d: %v", blob.Digest, i, err)
		}
	}
	b.devices[blob.Digest] = f.Name()
	return f.Name()
}

func (b *converted) fill(ctx context.Context, f *os.File, blob *chunkfmt.Blob, g *chunkfmt.Group) error {
	if g.Codec == chunkfmt.Filler {
		return nil
	}
	stored := make([]byte, g.Stored)
	if err := b.ReadAt(ctx, blob, stored, g.Offset); err != nil {
		return err
	}
	plain, err := content.Decode(g, true, stored, nil)
	if err != nil {
		return err
	}
	if g.Segments == nil {
		_, err := f.WriteAt(plain, g.Device)
		return err
	}
	for _, s := range g.Segments {
		if _, err := f.WriteAt(plain[s.Offset:s.Offset+s.Length], s.Device); err != nil {
			return err
		}
	}
	return nil
}

// export mounts the self-contained image of a merged tree, and returns where.
func (b *converted) export(t *testing.T, tree *chunkfmt.Tree) string {
	t.Helper()
	f, err := os.CreateTemp(b.dir, "export-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r := content.NewReader(tree, b, content.Options{})
	if _, err := erofs.Export(t.Context(), f, tree, r.Group, erofs.Options{}); err != nil {
		t.Fatal(err)
	}
	return mountEROFS(t, f.Name(), nil)
}

// mountEROFS mounts an image from its file. The options of many devices do not
// fit into the one page of mount(2).
func mountEROFS(t *testing.T, image string, devices []string) string {
	t.Helper()
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("fsopen: %v", err)
	}
	defer func() { _ = unix.Close(fs) }() // only a description of the mount
	set := func(key, value string) {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			t.Fatalf("set %s=%s: %v", key, value, err)
		}
	}
	set("source", image)
	for _, d := range devices {
		set("device", d)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		log := make([]byte, 4096)
		n, _ := unix.Read(fs, log) // what there is of a reason
		t.Fatalf("mount %s: %v %s", image, err, log[:max(n, 0)])
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("fsmount: %v", err)
	}
	defer func() { _ = unix.Close(mount) }() // moved, or gone with its last user
	at := subdir(t, t.TempDir(), "erofs")
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatalf("mount at %s: %v", at, err)
	}
	unmountAtEnd(t, at)
	return at
}
