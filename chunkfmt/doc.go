// Package chunkfmt is the format underneath lazy images: which bytes of which
// blob make up which file, with a digest for each.
//
// # Model
//
// An Index describes one layer: its Tree of entries and inodes (whiteouts
// included), the chunks that file content is cut into, and the blobs that hold
// them. A chunk is a slice of a file's content and is named by the SHA-256 of
// its plain bytes. Chunks lie in groups; a group is compressed as one, is the
// unit of a lazy fetch, and is named by the SHA-256 of its stored bytes. The
// groups of a blob tile it without gaps.
//
// A blob also has a device: the address space of its decoded content, in which
// every file begins at a multiple of BlockSize. A node keeps it as a sparse
// file and fills it group by group; the EROFS image of a tree points into it.
//
// Merge resolves the whiteouts of a prefix of an image's layers and returns
// one Tree. Encode and Decode turn an Index into bytes and back; FORMAT.md
// specifies the bytes.
//
// # What readers may rely on
//
// Decode accepts only canonical, consistent indexes: every index that it
// returns passes Validate, so that code walking a Tree need not check bounds,
// cannot loop, and finds at most Limits' worth of anything. It does not say who
// made the index (package trust does) nor that the tree matches its Merkle root
// (package merkle does).
//
// # Packages
//
//   - merkle: roots, proofs and differences of trees
//   - build: makes indexes and blobs from layer tars
//   - estargz: reads the tables of contents of eStargz and zstd:chunked layers
//   - frames: finds the members of gzip and the frames of zstd streams
//   - content: reads and verifies file content through groups
//   - erofs: writes EROFS images of trees
//   - artifact: the OCI manifests that carry indexes
//   - trust: signatures and the policy on whose indexes are used
//
// Trees and indexes are not changed after they are made, and may then be used
// by several goroutines.
package chunkfmt
