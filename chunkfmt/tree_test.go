package chunkfmt_test

import (
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Directories that wait for their turn share the path to their parent.
func TestWalkOfLongPaths(t *testing.T) {
	const dirs = 10_000
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("d", 250)+"/", 15), "/")
	d := chunkfmt.NewDraft()
	for i := range dirs {
		must(t, d.Put(fmt.Sprintf("%s/%d/f", long, i), file("")))
	}
	tree := freeze(t, d)
	before, during, files := heap(), uint64(0), 0
	for name := range tree.Walk() {
		if path.Base(name) != "f" {
			continue
		}
		if files++; files == 1 {
			during = heap()
			if want := long + "/0/f"; name != want {
				t.Errorf("path %q, want %q", name, want)
			}
		}
	}
	if files != dirs || during > before+dirs*500 {
		t.Errorf("%d files; walking took %d bytes", files, during-before)
	}
}

func TestGroupsOf(t *testing.T) {
	chunks := []chunkfmt.Chunk{
		{Group: 0, Length: 10, Digest: chunkfmt.Sum([]byte("0"))},
		{Group: 1, Length: 4096, Digest: chunkfmt.Sum([]byte("1"))},
		{Blob: chunkfmt.Hole, Length: 4096},
	}
	d := chunkfmt.NewDraft()
	must(t, d.Put("f", &chunkfmt.Node{Kind: chunkfmt.File, Size: 7*4096 + 10, Chunks: []uint32{1, 1, 1, 2, 2, 2, 1, 0}}))
	tree, err := d.Freeze(chunks, []chunkfmt.Blob{{}})
	must(t, err)
	first, second := chunkfmt.GroupRef{Group: 0}, chunkfmt.GroupRef{Group: 1}
	tests := []struct {
		off, n int64
		want   []chunkfmt.GroupRef
	}{
		{0, 1, []chunkfmt.GroupRef{second}},
		{0, 1 << 62, []chunkfmt.GroupRef{second, first}},
		{1 << 40, 1<<63 - 1, nil},
		{2*4096 + 4095, 1, []chunkfmt.GroupRef{second}},
		{3 * 4096, 3 * 4096, nil},
		{3*4096 - 1, 1, []chunkfmt.GroupRef{second}},
		{5*4096 + 4095, 2, []chunkfmt.GroupRef{second}},
		{7 * 4096, 1, []chunkfmt.GroupRef{first}},
		{7*4096 - 1, 2, []chunkfmt.GroupRef{second, first}},
		{7*4096 + 10, 5, nil},
		{0, 0, nil},
	}
	for _, tt := range tests {
		if got := tree.GroupsOf(1, tt.off, tt.n); !slices.Equal(got, tt.want) {
			t.Errorf("%d bytes at %d: %v, want %v", tt.n, tt.off, got, tt.want)
		}
	}
	if got := tree.GroupsOf(0, 0, 1); got != nil {
		t.Errorf("of the root: %v", got)
	}
}

// A file of 16 TiB of zeros is one run.
func TestGroupsOfSparseFile(t *testing.T) {
	tree := &chunkfmt.Tree{
		Attrs:  []chunkfmt.Attr{{Kind: chunkfmt.File}},
		Inodes: []chunkfmt.Inode{{Count: 2}},
		Runs:   []chunkfmt.Run{{Count: 1<<32 - 1, Repeat: true}, {Chunk: 1, Count: 1}},
		Chunks: []chunkfmt.Chunk{{Blob: chunkfmt.Hole, Length: 4096}, {Length: 1}},
	}
	if got := tree.GroupsOf(0, 4096*(1<<32-1), 1); len(got) != 1 {
		t.Errorf("groups %v", got)
	}
}
