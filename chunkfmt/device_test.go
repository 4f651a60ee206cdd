package chunkfmt_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

func unproven(b *chunkfmt.Blob) {
	b.Unproven = true
	for i := range b.Groups {
		b.Groups[i].Digest = chunkfmt.Digest{}
	}
}

func TestDeviceKeyStays(t *testing.T) {
	proven := oneFile(t, "a", sharedBlob(nil), at(0, 0, 4096, "0"))
	other := oneFile(t, "a", sharedBlob(unproven), at(0, 0, 4096, "0"), at(1, 2048, 5000, "1"))
	for want, tree := range map[string]*chunkfmt.Tree{
		"sha256:446a03b4841cfa1c3d80f0725666594408460c573d0266eefb39ad7b3154e1c0": proven,
		"sha256:e882a8ec01eee550cd64df4c6cd76090d65d3ec049877fc98d602ea45f65ea47": other,
	} {
		if got := tree.DeviceKey(0).String(); got != want {
			t.Errorf("key %s, want %s", got, want)
		}
	}
	if key := oneFile(t, "a", sharedBlob(external), at(0, 0, 4096, "0")).DeviceKey(0); !key.IsZero() {
		t.Errorf("an external blob has the key %s", key)
	}
}

// Whatever decides what is in a device has another key.
func TestDeviceKeyCovers(t *testing.T) {
	seen := map[chunkfmt.Digest]string{}
	check := func(name string, tree *chunkfmt.Tree) {
		t.Helper()
		key := tree.DeviceKey(0)
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %q have one device", name, other)
		}
		seen[key] = name
	}
	for name, change := range map[string]func(b *chunkfmt.Blob){
		"as it is":     func(*chunkfmt.Blob) {},
		"digest":       func(b *chunkfmt.Blob) { b.Digest[0]++ },
		"size":         func(b *chunkfmt.Blob) { b.Size++; b.Groups[2].Stored++ },
		"device size":  func(b *chunkfmt.Blob) { b.DeviceSize += chunkfmt.BlockSize },
		"group digest": func(b *chunkfmt.Blob) { b.Groups[0].Digest[0]++ },
		"codec":        func(b *chunkfmt.Blob) { b.Groups[0].Codec = chunkfmt.Gzip },
		"plain":        func(b *chunkfmt.Blob) { b.Groups[0].Plain++ },
		"cut": func(b *chunkfmt.Blob) {
			b.Groups[1].Stored--
			b.Groups[2].Offset--
			b.Groups[2].Stored++
		},
		"place": func(b *chunkfmt.Blob) {
			b.Groups[1].Segments[1].Device += chunkfmt.BlockSize
			b.DeviceSize += chunkfmt.BlockSize
		},
		"segment":         func(b *chunkfmt.Blob) { b.Groups[1].Segments[1].Offset++ },
		"segment length":  func(b *chunkfmt.Blob) { b.Groups[1].Segments[1].Length-- },
		"segment missing": func(b *chunkfmt.Blob) { b.Groups[1].Segments = b.Groups[1].Segments[:1] },
		"no segments":     func(b *chunkfmt.Blob) { b.Groups[1].Segments = []chunkfmt.Segment{} },
		"unproven":        unproven,
	} {
		check(name, oneFile(t, "a", sharedBlob(change), at(0, 0, 4096, "0")))
	}
	check("unproven, other content", oneFile(t, "a", sharedBlob(unproven), at(0, 0, 4096, "other")))
	check("unproven, other length", oneFile(t, "a", sharedBlob(unproven), at(0, 0, 4095, "0")))
	check("unproven, another chunk", oneFile(t, "a", sharedBlob(unproven), at(0, 0, 4096, "0"), at(0, 4096, 1, "1")))
	check("unproven, another group", oneFile(t, "a", sharedBlob(unproven), at(1, 2048, 4096, "0")))
}

// Images that share a layer share its device, whatever else they have.
func TestDeviceKeyIsThatOfTheDefinition(t *testing.T) {
	for name, change := range map[string]func(b *chunkfmt.Blob){"proven": nil, "unproven": unproven} {
		t.Run(name, func(t *testing.T) {
			first := oneFile(t, "first", scriptBlob(1, false), at(0, 0, 4096, "first"))
			chunks := []chunkfmt.Chunk{at(0, 0, 4096, "0"), at(0, 8192, 4096, "8"), at(1, 512, 1000, "s"), at(1, 2048, 5000, "t")}
			d := chunkfmt.NewDraft()
			must(t,
				d.Put("a", &chunkfmt.Node{Kind: chunkfmt.File, Size: 8192, Chunks: []uint32{0, 1}}),
				d.Put("b", &chunkfmt.Node{Kind: chunkfmt.File, Size: 1000, Chunks: []uint32{2}}),
				d.Put("c", &chunkfmt.Node{Kind: chunkfmt.File, Size: 5000, Chunks: []uint32{3}}),
			)
			lower, err := d.Freeze(chunks, []chunkfmt.Blob{sharedBlob(change)})
			must(t, err)
			want := lower.DeviceKey(0)
			upper := oneFile(t, "d", sharedBlob(external), at(0, 0, 4096, "0"))
			for _, layers := range [][]*chunkfmt.Tree{
				{lower},
				{first, lower},
				{first, lower, layer(t, remove("a"), remove("c"))},
				{first, lower, layer(t, remove("a"), remove("b"), remove("c")), upper},
			} {
				tree, err := chunkfmt.Merge(layers...)
				must(t, err)
				must(t, tree.ValidateMerged())
				at := slices.IndexFunc(tree.Blobs, func(b chunkfmt.Blob) bool { return b.Digest == lower.Blobs[0].Digest })
				if got := tree.DeviceKey(uint32(at)); got != want {
					t.Errorf("%d layers: key %s, want %s", len(layers), got, want)
				}
			}
			tree, err := chunkfmt.Merge(first, lower, layer(t, remove("a"), remove("c")))
			must(t, err)
			used := []chunkfmt.GroupRef{{Blob: 0, Group: 0}, {Blob: 1, Group: 1}}
			if got := slices.Collect(tree.UsedGroups()); !slices.Equal(got, used) {
				t.Errorf("used groups %v, want %v", got, used)
			}
			if tree, err = chunkfmt.Merge(lower, layer(t, remove("a"), remove("b"), remove("c"))); err != nil || len(tree.Chunks) != 0 {
				t.Errorf("chunks of a blob that nothing uses: %v, %v", tree, err)
			}
		})
	}
}

// What an upper layer says of an unproven blob nobody would check when the
// device is filled for the lower layers only.
func TestMergeRefusesForeignChunksOfUnprovenBlobs(t *testing.T) {
	lower := oneFile(t, "a", sharedBlob(unproven), at(0, 0, 4096, "0"))
	for name, upper := range map[string]*chunkfmt.Tree{
		"external":      oneFile(t, "b", sharedBlob(external), at(0, 4096, 4096, "4")),
		"defined again": oneFile(t, "b", sharedBlob(unproven), at(0, 4096, 4096, "4")),
	} {
		_, err := chunkfmt.Merge(lower, upper)
		if !errors.Is(err, chunkfmt.ErrInvalid) || !strings.Contains(err.Error(), "layer 0, which defines it") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
