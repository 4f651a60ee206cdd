// Package content reads the content of files of a chunkfmt tree through the
// groups that hold it, and verifies trees against blobs and against directories.
//
// # Guarantees
//
// Nothing is returned before it is proven: the stored bytes of a group are
// checked against the group's digest before they are decoded, and what comes
// from an Unproven blob is checked chunk by chunk after it. Errors for what is
// not what the tree says wrap ErrCorrupt and name the blob and the group, and
// where they are about a file, its path.
//
// Decoding one group takes no memory beyond its plain bytes and, per running
// decoder, a constant and the window of the compressed stream. No function
// starts a goroutine that is still there when it has returned.
//
// The trees must be valid (see package chunkfmt): an index that Decode
// returned, a Merge of such, or one of the builders' trees.
package content
