// Package task defines what the swarm distributes.
//
// A task is one object: a blob named by its digest, or the content of a URL
// under one set of validators. Its content is cut into pieces by a Table; a
// piece is the unit of transfer between peers and is proven by the SHA-256 of
// its bytes. A Set says which pieces somebody holds.
//
// An ID names content, never a place: the same blob pulled from two
// repositories is one task. Whether a client may have the bytes is decided
// elsewhere, per repository and credential.
//
// The package does no I/O.
package task
