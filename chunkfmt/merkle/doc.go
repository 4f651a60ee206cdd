// Package merkle proves what is in a tree.
//
// The digest of a file covers its metadata and, through a binary hash tree,
// its chunks; that of a directory its metadata and, through another one, the
// names and digests of its children; that of the root directory, the Merkle
// root, thereby everything that a user of the file system can see, and nothing
// else: where chunks lie in which blobs, and what is inline, may differ between
// trees of one root. How files are cut into chunks is covered. FORMAT.md,
// "Merkle tree", defines each byte that is hashed.
//
// Hash computes the digests of a whole tree, Check compares an index with the
// root that it claims. A Proof shows somebody who only knows the root what one
// file is, and which chunks hold a part of it. Diff compares two trees, and
// goes only where their digests differ.
//
// A root says nothing about who vouches for it: that is package trust.
package merkle
