// Package trust decides whose indexes a node uses.
//
// A registry lets anybody who may write to a repository attach an artifact to
// any manifest in it, and the signature of an image does not cover what refers
// to it. An index says which bytes a file has, so a forged one is a forged
// image. Policy.Verify is the one place that decides. It trusts an artifact if
//
//   - the manifest of the image binds it: it has the digest of each index and
//     the Merkle root as annotations (artifact.Image.Bind), as images written
//     with --as-image do; who pulls an image trusts its manifest already; or
//   - a key that the policy has signed it; or
//   - the policy lists its repository as one whose indexes need no signature.
//
// Tables of contents of eStargz and zstd:chunked layers are bound in the same
// way: BoundTOC.
//
// # Signatures
//
// A signature is Ed25519 over
//
//	dev.damselfly.signature.v1 LF <digest of the artifact's manifest> LF
//
// The first line keeps a signature from meaning anything elsewhere. The
// artifact's manifest has the digests of the image's manifest and of all
// indexes and blobs, so that the signature covers them. It is carried by an OCI
// artifact whose subject is the artifact; its annotation with the key's ID only
// says which key to try.
//
// A signature does not end, and says nothing about repositories: it says that
// these are the indexes of that image, wherever it lies. A key is withdrawn by
// taking it out of the policies.
//
// # Keys
//
// Private keys are PKCS#8 in PEM, public ones SubjectPublicKeyInfo in PEM, which
// openssl reads and writes too. Private keys are never overwritten, and no
// error or log line has their content.
//
// Keys and policies do not change and may be used by several goroutines. Only
// the functions in file.go do I/O.
package trust

import "errors"

// ErrUntrusted is wrapped by the errors about indexes that nobody vouches for
// whom the policy trusts.
var ErrUntrusted = errors.New("index is not trusted")

// ErrKey is wrapped by the errors about keys that cannot be used.
var ErrKey = errors.New("unusable key")
