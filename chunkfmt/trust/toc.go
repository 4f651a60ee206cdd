package trust

import (
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// The annotations by which manifests bind the tables of contents of layers.
const (
	estargzTOC = "containerd.io/snapshot/stargz/toc.digest"
	// zstd:chunked has two spellings: that of Podman and Buildah, and that of
	// stargz-snapshotter.
	chunkedTOC       = "io.github.containers.zstd-chunked.manifest-checksum"
	chunkedTOCStargz = "io.containers.zstd-chunked.manifest-checksum"
)

// TOC is what the manifest of an image says about the table of contents of a
// layer. A table that has each of the digests given here is vouched for by
// whoever vouches for the manifest.
type TOC struct {
	// JSON is the digest of the plain table; zero if it is not bound.
	JSON chunkfmt.Digest
	// Stored is the digest of the table as the layer has it, compressed; zero
	// if it is not bound. zstd:chunked has it.
	Stored chunkfmt.Digest
}

// BoundTOC returns what the descriptor of a layer, of a manifest whose digest
// was checked, binds; false if it binds no table of contents, or not in a form
// that can be checked.
func BoundTOC(layer v1.Descriptor) (TOC, bool) {
	var t TOC
	for _, b := range []struct {
		name string
		to   *chunkfmt.Digest
	}{{estargzTOC, &t.JSON}, {chunkedTOC, &t.Stored}, {chunkedTOCStargz, &t.Stored}} {
		text, ok := layer.Annotations[b.name]
		if !ok {
			continue
		}
		d, err := chunkfmt.ParseDigest(text)
		if err != nil || d.IsZero() || !b.to.IsZero() && *b.to != d {
			return TOC{}, false
		}
		*b.to = d
	}
	return t, t != TOC{}
}

// Verify reports whether a table of contents, as the layer has it and plain,
// is the bound one.
func (t TOC) Verify(stored, plain []byte) bool {
	if t == (TOC{}) {
		return false
	}
	return (t.Stored.IsZero() || chunkfmt.Sum(stored) == t.Stored) && (t.JSON.IsZero() || chunkfmt.Sum(plain) == t.JSON)
}
