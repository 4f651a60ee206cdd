// Package imageindex joins images and their chunkfmt indexes: it makes the
// indexes of an image and attaches them (Convert), finds and verifies those
// that an image has (Find), and loads them (Load).
//
// What it guarantees:
//
//   - Find returns only what a trust policy accepts, unless it is asked to
//     report the refusal instead; what nobody vouches for and what is not there
//     are different errors (trust.ErrUntrusted, ErrNoIndex).
//   - Load returns indexes whose bytes have the digests that their artifact
//     names, that are of the layers and diff IDs of the image, and that are within
//     limits which hold whoever made them. The Merkle roots are not computed
//     again; Loaded.Check does that.
//   - Convert pushes what an artifact needs before the artifact, and the artifact
//     before its signature, so that whoever sees one can use it. It may be
//     repeated after a failure and sends only what is missing. No tag that names
//     an image is replaced, except by the image that AsImage writes.
//
// It writes nowhere but to the target and to the directory it is given.
package imageindex
