package chunkfmt

import (
	"crypto/sha256"
	"sort"
)

// deviceDomain begins what device keys are digests of.
const deviceDomain = "dev.damselfly.device.v1\n"

// DeviceKey names the device of a blob by all that decides what is in it: the
// blob's digest, its groups with their digests and places and, of an Unproven
// blob, the chunks in it, by which alone its content is checked. Devices, and
// stores of groups, are shared by this key and never by the blob's digest, or
// else an index could put wrong content under another image's files: nobody
// sees the whole blob, and both the index and the registry may be its author's.
// FORMAT.md, "Devices", has the rules.
//
// The key is the same in the index that defines the blob and in every merged
// tree that uses it. The key of an External blob, which has no device here, is
// zero.
func (t *Tree) DeviceKey(blob uint32) Digest {
	b := t.Blobs[blob]
	if b.External {
		return Digest{}
	}
	only := Tree{Blobs: []Blob{b}}
	if b.Unproven {
		first, last := t.chunksIn(blob)
		only.Chunks = make([]Chunk, last-first)
		copy(only.Chunks, t.Chunks[first:last])
		for i := range only.Chunks {
			only.Chunks[i].Blob = 0
		}
	}
	w := writer{p: []byte(deviceDomain)}
	writeBlobs(&w, &only)
	writeChunks(&w, &only, &counts{})
	return sha256.Sum256(w.p)
}

// chunksIn returns where the chunks of a blob begin and end in Chunks.
func (t *Tree) chunksIn(blob uint32) (first, last int) {
	// Holes come first, and Hole plus one is 0.
	place := func(after uint32) int {
		return sort.Search(len(t.Chunks), func(i int) bool { return t.Chunks[i].Blob+1 >= after })
	}
	return place(blob + 1), place(blob + 2)
}
