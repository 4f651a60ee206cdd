// Package estargz makes indexes of layers that carry a table of contents of
// their own, without reading the layers: eStargz (gzip), the stargz of before,
// and zstd:chunked as containers/storage and stargz-snapshotter write it.
//
// # Guarantees
//
// Open reads the footer and the table of contents, nothing else. It uses the
// table only when it matches a digest that the caller took from the manifest,
// unless Options.AllowUnverified says otherwise. The table describes the layer
// and is believed, as these formats want it: whether the tar in the layer says
// the same is not checked, and not the table's digests of whole files. The
// blob of the index is Unproven: only the digests of its chunks are known, and
// what is read must be checked against them.
//
// Group.Plain of an Unproven blob says how many decoded bytes of a group are
// used. The members of these formats go on with the tar's padding and the next
// headers; how far, the table does not say.
//
// Index.Root is left zero: package merkle fills it.
//
// A table that breaks its format gives an error wrapping chunkfmt.ErrInvalid;
// one that is right but does not fit the bounds of chunkfmt gives
// ErrUnsupported; a layer without a table ErrNoTable. Memory is bounded by
// Limits.
//
// # What is not in the tree
//
// The table itself, the landmark files .prefetch.landmark and
// .no.prefetch.landmark, and the tar-split data of zstd:chunked.
//
// Tables of eStargz have times rounded to the nearest second, up or down, while
// the tar in the layer, which unpacking and package build go by, may have parts
// of seconds. A tree from such a table is that of the unpacked layer in
// everything else, but for the files above.
//
// The formats are specified in
// https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
// and https://github.com/containers/storage/blob/main/docs/containers-storage-zstd-chunked.md
package estargz
