// Package build turns the layers of an image into chunkfmt indexes and blobs.
//
// # What it does
//
// Build reads each layer once, as a stream, and unpacks nothing to disk. Per
// layer it returns an index and the blobs made for it, in one of three ways:
//
//   - a new blob: the content of the files, cut into chunks of equal size,
//     equal chunks stored once, packed into groups and compressed;
//   - in place: the layer consists of many gzip members or zstd frames already
//     (eStargz, zstd:chunked), which become the groups; nothing is stored;
//   - as an image: the unchanged tar as independent zstd frames, which is an
//     ordinary layer for everybody else and has the same DiffID.
//
// # Guarantees
//
// The result is the same to the bit for the same layers and options, whatever
// the number of workers and however their work interleaves: which chunk is
// stored where is decided in the order of the layers and of their tars.
//
// A tree is what containerd would unpack from the tar, with archive/tar as the
// judge of what the tar says. The attributes of the root directory itself are
// ignored, as containerd does; times outside [1970, 2262) become 1970, as there.
// Extended attributes that Linux does not have for an entry are dropped with a
// warning.
//
// The stored bytes are checked against Layer.Digest, the plain ones against
// Layer.DiffID, both to the real end of the stream. When Build returns an error
// or its context ends, no goroutine of it is left and no file that it made.
//
// Memory is bounded by Options.MemoryLimit plus what the trees themselves
// need (some 300 bytes per entry of the layer in work, 150 per entry and 120 per
// chunk of the others), whatever sizes the input claims.
//
// # What it does not do
//
// Blobs are not synced to the disk: they are meant to be pushed. Nothing is
// signed and nothing is uploaded.
package build
