// Package frames finds the parts that a compressed layer is made of: the
// members of a gzip stream and the frames of a zstd stream, each with its exact
// stored bytes and what they decode to.
//
// # Guarantees
//
// The frames that Reader returns tile the stream: nothing lies between them or
// behind the last. Each was decoded in full and its checksum, where the format
// has one, was right. A Reader holds no more than the two limits it was made
// with and a constant, whatever the stream says about itself, and decodes no
// more than one block beyond its limit of plain bytes.
//
// A stream that ends inside a frame gives io.ErrUnexpectedEOF. Anything behind a
// frame that does not begin another one is an error too, zeros included: this
// is what containerd does with the Go readers of gzip and zstd. (gzip(1) and
// unpigz ignore it with a warning.)
//
// PlainReader streams have no limit of their own on how much comes out: their
// callers bound that.
//
// A Reader starts no goroutines, needs no Close, and is for one goroutine.
package frames
