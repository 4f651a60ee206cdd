// Package artifact has the OCI manifests that carry the indexes of an image.
//
// # The artifact of an image
//
// The indexes of an image are an OCI artifact of their own, which refers to the
// image's manifest (the subject) and changes nothing about it: people go on
// pulling the same reference and get the same digest. An image index has one
// artifact for each platform's manifest. The artifact is an image manifest with
//
//   - artifactType ArtifactType, the empty config, and the image's manifest as
//     its subject;
//   - annotation AnnotationRoot, the Merkle root of the merged tree;
//   - as layers first one IndexType blob for each layer of the image, in the
//     order of the image and also for layers without content, with the
//     annotations AnnotationLayerDigest, AnnotationLayerDiffID and
//     AnnotationRoot, which say what it is the index of;
//   - then each DataType blob that the indexes use, once: those made for this
//     image, and those of a dictionary, so that the registry keeps them.
//
// Layers of the image that are read in place (eStargz, zstd:chunked, images
// written with --as-image) are not listed again: they live as long as the
// subject, and without the subject the artifact has no use.
//
// # What readers may rely on
//
// Parse and the other parsers return only what is complete and within the
// limits; unknown annotations and members are ignored, as OCI asks for, but
// not unknown layers, which might be needed. A manifest that other readers
// could read otherwise is an error: one with a member that is there twice, or
// with one that they know in other letters. Every digest is a SHA-256. They do
// not say that anybody vouches for an artifact, which is what package trust
// does, nor that it belongs to an image: MatchLayers and Match do.
//
// The package does no I/O. What it returns may be used by several goroutines
// that do not change it.
package artifact

import "errors"

// Media types.
const (
	// IndexType is the media type of an encoded chunkfmt.Index.
	IndexType = "application/vnd.damselfly.index.v1"
	// DataType is the media type of a blob that holds groups.
	DataType = "application/vnd.damselfly.blob.v1"
	// ArtifactType is the artifactType of the artifact of an image.
	ArtifactType = "application/vnd.damselfly.image.v1"
	// SignatureType is the artifactType of a signature (package trust).
	SignatureType = "application/vnd.damselfly.signature.v1"
)

// Annotations. All begin with AnnotationPrefix.
const (
	AnnotationPrefix = "dev.damselfly."
	// AnnotationRoot is a Merkle root: on the artifact, and on a manifest that
	// binds its indexes, that of the merged tree; on an index, that of the
	// tree of the layer.
	AnnotationRoot = AnnotationPrefix + "root"
	// AnnotationLayerDigest is, on an index, the digest of the layer as the
	// image's manifest has it.
	AnnotationLayerDigest = AnnotationPrefix + "layer.digest"
	// AnnotationLayerDiffID is, on an index, the digest of the layer's
	// uncompressed tar.
	AnnotationLayerDiffID = AnnotationPrefix + "layer.diff-id"
	// AnnotationIndex is, on a layer of an image that was written together
	// with its indexes, the digest of the layer's index. It binds the index:
	// see Bind.
	AnnotationIndex = AnnotationPrefix + "index"
	// AnnotationSignature is, on a signature, the signature in base64.
	AnnotationSignature = AnnotationPrefix + "signature"
	// AnnotationKey is, on a signature, the ID of the key that made it.
	AnnotationKey = AnnotationPrefix + "key"
)

// Limits.
const (
	// MaxManifest bounds a manifest, and the list of an image's referrers, in
	// bytes: what registries accept.
	MaxManifest = 4 << 20
	// MaxLayers bounds the layers of an image. Overlayfs mounts 500.
	MaxLayers = 1024
	// MaxIndexSize bounds an index as it is stored, in bytes.
	MaxIndexSize = 1 << 30
	// MaxBlobSize bounds any other blob, in bytes.
	MaxBlobSize = 1 << 44
)

// ErrInvalid is wrapped by the errors about manifests that break the format or
// its limits.
var ErrInvalid = errors.New("invalid manifest")

// ErrMismatch is wrapped by the errors about an artifact that is not that of
// the image it is used for.
var ErrMismatch = errors.New("index does not belong to the image")
