package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

func export(t testing.TB, f *fixture, tree *chunkfmt.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	im, err := erofs.Export(t.Context(), &b, tree, f.read(), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if im.Size != int64(b.Len()) || im.Size%block != 0 || im.Meta > im.Size || len(im.Devices) > 0 {
		t.Errorf("%d bytes written, image is %+v", b.Len(), im)
	}
	return b.Bytes()
}

func TestReaderSeesExport(t *testing.T) {
	for _, tt := range exports {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.make(f)
			tree := f.tree()
			compare(t, tree, newGoView(t, export(t, f, tree), nil))
		})
	}
}

// exports are the trees that Export is tested with: those of trees which are
// not about names alone, and some more.
var exports = append(trees[:len(trees)-2:len(trees)-2],
	testTree{"equal chunks", equalChunks},
	testTree{"chunks amid blocks", chunksAmidBlocks},
)

func equalChunks(f *fixture) {
	a, b := f.blob(), f.blob()
	same, short := f.random(3*block), f.random(100)
	f.put("a", f.file(f.group(a, same, f.random(block), short)...))
	f.put("b", f.file(f.group(b, f.random(block), same, f.random(block), short)...))
	f.put("c", f.file(f.group(b, short)...))
	f.put("d", f.file(f.group(b, same)...))
}

// chunksAmidBlocks has files that go on from chunk to chunk amid blocks, as
// those of layers with content-defined chunks do.
func chunksAmidBlocks(f *fixture) {
	a := f.blob()
	split := func(data []byte, at ...int) []uint32 {
		whole := f.group(a, data)[0]
		var chunks []uint32
		for i, from := range at {
			to := len(data)
			if i+1 < len(at) {
				to = at[i+1]
			}
			c := f.chunks[whole]
			c.Offset, c.Length, c.Digest = uint32(from), uint32(to-from), chunkfmt.Sum(data[from:to])
			chunks = append(chunks, uint32(len(f.chunks)))
			f.chunks = append(f.chunks, c)
		}
		return chunks
	}
	data := f.random(5 * block)
	f.put("one", f.file(split(data, 0, 100, 5000, 2*block, 2*block+1)...))
	// The same bytes once more: chunks amid blocks cannot be shared.
	f.put("two", f.file(split(data, 0, 100, 5000, 2*block, 2*block+1)...))
}

func TestExportStoresOnce(t *testing.T) {
	f := newFixture(t)
	equalChunks(f)
	unused := f.blob()
	f.group(unused, f.random(100*block))
	tree := f.tree()
	size := len(export(t, f, tree))
	// Superblock and inodes, same, short, and three others of one block.
	if want := (2 + 3 + 1 + 3) * block; size != want {
		t.Errorf("image of %d bytes, want %d", size, want)
	}
}

func TestExportRefuses(t *testing.T) {
	errRead := errors.New("registry down")
	for _, tt := range []struct {
		name string
		read func([]byte) ([]byte, error)
		want string
	}{
		{"read error", func([]byte) ([]byte, error) { return nil, errRead }, errRead.Error()},
		{"changed", func(b []byte) ([]byte, error) { b[0]++; return b, nil }, "has digest sha256:"},
		{"short", func(b []byte) ([]byte, error) { return b[:len(b)-1], nil }, "ends beyond"},
		{"empty", func([]byte) ([]byte, error) { return nil, nil }, "ends beyond"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.put("dir/file", f.file(f.group(f.blob(), f.random(block))...))
			tree := f.tree()
			read := f.read()
			_, err := erofs.Export(t.Context(), io.Discard, tree, func(ctx context.Context, r chunkfmt.GroupRef) ([]byte, error) {
				b, err := read(ctx, r)
				if err != nil {
					return nil, err
				}
				return tt.read(b)
			}, erofs.Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "/dir/file") {
				t.Errorf("error %v, want %q and the path", err, tt.want)
			}
		})
	}
}

// A digest beside two lengths must not make one chunk stand for the other: the
// file would go on with what lies behind it in the image.
func TestExportTellsChunksOfOneDigestApart(t *testing.T) {
	for _, wrong := range []int{0, 1} {
		f := newFixture(t)
		b := f.blob()
		data := f.random(2 * block)
		short, long := f.group(b, data[:block])[0], f.group(b, data)[0]
		f.chunks[short].Digest = f.chunks[long].Digest
		if wrong == 1 {
			f.chunks[short].Digest, f.chunks[long].Digest = chunkfmt.Sum(data[:block]), chunkfmt.Sum(data[:block])
		}
		f.put("short", f.file(short))
		f.put("long", f.file(long))
		_, err := erofs.Export(t.Context(), io.Discard, f.tree(), f.read(), erofs.Options{})
		if name := []string{"/short", "/long"}[wrong]; err == nil || !strings.Contains(err.Error(), name+":") {
			t.Errorf("the digest of %s is wrong: error %v", name, err)
		}
	}
}

func TestExportEndsWithContext(t *testing.T) {
	f := newFixture(t)
	b := f.blob()
	f.put("a", f.file(append(f.group(b, f.random(block)), f.group(b, f.random(block))...)...))
	tree := f.tree()
	ctx, cancel := context.WithCancel(t.Context())
	read := f.read()
	reads := 0
	_, err := erofs.Export(ctx, io.Discard, tree, func(ctx context.Context, r chunkfmt.GroupRef) ([]byte, error) {
		cancel()
		reads++
		return read(ctx, r)
	}, erofs.Options{})
	if !errors.Is(err, context.Canceled) || reads != 1 {
		t.Errorf("error %v after %d reads, want %v after 1", err, reads, context.Canceled)
	}
}

func TestExportReportsWriter(t *testing.T) {
	f := newFixture(t)
	var chunks []uint32
	for range 8 {
		chunks = append(chunks, f.group(f.blob(), f.random(1<<20))...)
	}
	f.put("a", f.file(chunks...))
	tree := f.tree()
	for _, n := range []int{0, block, 1 << 20, 6 << 20} {
		_, err := erofs.Export(t.Context(), &failing{n}, tree, f.read(), erofs.Options{})
		if !errors.Is(err, errFull) {
			t.Errorf("after %d bytes: error %v, want %v", n, err, errFull)
		}
	}
}

// The kernel mounts an export from a file and from a block device.
func TestKernelSeesExport(t *testing.T) {
	needMount(t)
	losetup := testenv.Tool(t, "losetup")
	for _, tt := range exports {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.make(f)
			tree := f.tree()
			file := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(file, export(t, f, tree), 0o600); err != nil {
				t.Fatal(err)
			}
			compare(t, tree, osView(mount(t, file, nil)))
			out, err := exec.CommandContext(t.Context(), losetup, "--find", "--show", "--read-only", file).Output()
			if err != nil {
				t.Fatalf("losetup: %v", err)
			}
			loop := strings.TrimSpace(string(out))
			t.Cleanup(func() {
				if err := exec.Command(losetup, "--detach", loop).Run(); err != nil {
					t.Errorf("detach %s: %v", loop, err)
				}
			})
			compare(t, tree, osView(mount(t, loop, nil)))
			fsckImage(t, file, nil)
		})
	}
}

func BenchmarkExport(b *testing.B) {
	f := newFixture(b)
	blob := f.blob()
	const groups, size = 64, 1 << 20
	for i := range groups {
		f.put(fmt.Sprint(i), f.file(f.group(blob, f.random(size/2), f.random(size/2))...))
	}
	tree := f.tree()
	b.SetBytes(groups * size)
	for b.Loop() {
		if _, err := erofs.Export(b.Context(), io.Discard, tree, f.read(), erofs.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
