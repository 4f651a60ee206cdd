package chunkfmt_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// sharedBlob has a linear group, one with segments, and a filler.
func sharedBlob(change func(b *chunkfmt.Blob)) chunkfmt.Blob {
	b := chunkfmt.Blob{
		Digest: chunkfmt.Sum([]byte("shared")), Size: 60, DeviceSize: 8 * chunkfmt.BlockSize,
		Groups: []chunkfmt.Group{
			{Stored: 10, Plain: 4*chunkfmt.BlockSize + 100, Codec: chunkfmt.Zstd, Digest: chunkfmt.Sum([]byte("0"))},
			{Offset: 10, Stored: 20, Plain: 10000, Codec: chunkfmt.Gzip, Digest: chunkfmt.Sum([]byte("1")), Segments: []chunkfmt.Segment{
				{Offset: 512, Length: 1000, Device: 5 * chunkfmt.BlockSize},
				{Offset: 2048, Length: 5000, Device: 6 * chunkfmt.BlockSize},
			}},
			{Offset: 30, Stored: 30, Codec: chunkfmt.Filler, Digest: chunkfmt.Sum([]byte("2"))},
		},
	}
	if change != nil {
		change(&b)
	}
	return b
}

func external(b *chunkfmt.Blob) { b.External, b.Groups = true, nil }

// at is a chunk of the first blob.
func at(group, offset, length uint32, content string) chunkfmt.Chunk {
	return chunkfmt.Chunk{Group: group, Offset: offset, Length: length, Digest: chunkfmt.Sum([]byte(content))}
}

// oneFile is a layer with a file of chunks.
func oneFile(t *testing.T, name string, blob chunkfmt.Blob, chunks ...chunkfmt.Chunk) *chunkfmt.Tree {
	t.Helper()
	n := &chunkfmt.Node{Kind: chunkfmt.File}
	for i, c := range chunks {
		n.Chunks = append(n.Chunks, uint32(i))
		n.Size += int64(c.Length)
	}
	d := chunkfmt.NewDraft()
	must(t, d.Put(name, n))
	tree, err := d.Freeze(chunks, []chunkfmt.Blob{blob})
	must(t, err)
	must(t, (&chunkfmt.Index{Tree: *tree}).Validate())
	return tree
}

func TestMergeSharesBlobs(t *testing.T) {
	lower := oneFile(t, "a", sharedBlob(nil), at(0, 0, 4096, "0"), at(0, 8192, 4096, "8"))
	upper := oneFile(t, "b", sharedBlob(external), at(0, 0, 4096, "0"), at(0, 4096, 4096, "4"), at(0, 8192, 4096, "8"))
	segment := oneFile(t, "c", sharedBlob(external), at(1, 2048, 4096, "s"), at(1, 6144, 904, "e"))
	again := oneFile(t, "d", sharedBlob(nil), at(0, 4096, 4096, "4"))
	tree, err := chunkfmt.Merge(lower, upper, segment, again)
	must(t, err)
	checkMerged(t, tree)
	if len(tree.Blobs) != 1 || tree.Blobs[0].External || len(tree.Blobs[0].Groups) != 3 || len(tree.Chunks) != 5 {
		t.Errorf("blobs %+v, chunks %+v", tree.Blobs, tree.Chunks)
	}
	// The chunks of a are neighbours in their layer, but not here.
	want := []chunkfmt.Run{{Chunk: 0, Count: 1}, {Chunk: 2, Count: 1}, {Chunk: 0, Count: 3}, {Chunk: 3, Count: 2}, {Chunk: 1, Count: 1}}
	if !slices.Equal(tree.Runs, want) {
		t.Errorf("runs %+v, want %+v", tree.Runs, want)
	}
	hidden, err := chunkfmt.Merge(lower, layer(t, remove("a"), putFile("e", "1")))
	must(t, err)
	if len(hidden.Blobs) != 0 || len(hidden.Chunks) != 0 || len(hidden.Runs) != 0 {
		t.Errorf("unused content stays: %+v", hidden)
	}
}

func TestMergeRefusesBlobs(t *testing.T) {
	first := at(0, 0, 4096, "0")
	lower := oneFile(t, "a", sharedBlob(nil), first)
	over := func(blob chunkfmt.Blob, chunks ...chunkfmt.Chunk) []*chunkfmt.Tree {
		return []*chunkfmt.Tree{lower, oneFile(t, "b", blob, chunks...)}
	}
	changed := func(change func(b *chunkfmt.Blob)) []*chunkfmt.Tree { return over(sharedBlob(change), first) }
	defined := "a layer below defines blob"
	tests := map[string]struct {
		layers []*chunkfmt.Tree
		want   string
	}{
		"not defined":       {[]*chunkfmt.Tree{oneFile(t, "b", sharedBlob(external), first)}, "layer 0: no layer below defines blob sha256:"},
		"defined above":     {[]*chunkfmt.Tree{oneFile(t, "b", sharedBlob(external), first), lower}, "layer 0: no layer below defines blob sha256:"},
		"other size":        {changed(func(b *chunkfmt.Blob) { external(b); b.Size++ }), defined},
		"other device size": {changed(func(b *chunkfmt.Blob) { b.DeviceSize += chunkfmt.BlockSize }), defined},
		"other group":       {changed(func(b *chunkfmt.Blob) { b.Groups[1].Digest[0]++ }), defined},
		"other segment":     {changed(func(b *chunkfmt.Blob) { b.Groups[1].Segments[0].Length-- }), defined},
		"unproven": {changed(func(b *chunkfmt.Blob) {
			b.Unproven = true
			for i := range b.Groups {
				b.Groups[i].Digest = chunkfmt.Digest{}
			}
		}), defined},
		"no such group":        {over(sharedBlob(external), at(3, 0, 1, "")), "only 3 groups"},
		"filler":               {over(sharedBlob(external), at(2, 0, 1, "")), "group 2"},
		"beyond the group":     {over(sharedBlob(external), at(0, 4*4096, 101, "")), "group 0"},
		"not aligned":          {over(sharedBlob(external), at(0, 8292, 1, "")), "group 0"},
		"between segments":     {over(sharedBlob(external), at(1, 1600, 100, "")), "not in one segment"},
		"before segments":      {over(sharedBlob(external), at(1, 0, 100, "")), "not in one segment"},
		"over a segment's end": {over(sharedBlob(external), at(1, 512, 1001, "")), "not in one segment"},
		"other content":        {over(sharedBlob(external), at(0, 0, 4096, "other")), "another chunk at byte 0 of group 0"},
		"other length":         {over(sharedBlob(external), at(0, 0, 100, "short")), "another chunk at byte 0 of group 0"},
		"overlap":              {[]*chunkfmt.Tree{oneFile(t, "a", sharedBlob(nil), at(0, 0, 8192, "long")), oneFile(t, "b", sharedBlob(external), at(0, 4096, 4096, "4"))}, "overlaps"},
		"page of two places":   {over(sharedBlob(external), at(0, 16384, 100, "tail"), first), "/b: "},
		"not aligned in the file": {
			over(sharedBlob(external), at(1, 2049, 100, "odd")), "/b: ",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := chunkfmt.Merge(tt.layers...)
			if !errors.Is(err, chunkfmt.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
