// Package image reads container images from where they are kept and writes
// images, indexes and blobs to where they go.
//
// A Source reads from a registry repository, an OCI layout, a docker-archive
// file or a directory tree; a Target writes to a registry repository or an OCI
// layout. What they guarantee:
//
//   - A manifest, a configuration and a blob read to its end have the digest and
//     the length that were asked for, or there is an error (ErrCorrupt). Ranged
//     reads cannot be checked here: their callers check what they read.
//   - Manifests and configurations have a bound on their size, indexes on their
//     depth and number of entries.
//   - Reading from a registry resumes a broken connection at the next byte, and
//     pushing a blob goes on from where the registry says it is. All attempts are
//     bounded, wait longer each time and honour Retry-After.
//   - Absent and unreachable are different answers: only an answer that says so
//     is ErrNotFound, and an empty list of referrers means that there are none.
//   - What a Target holds already is not sent again. A manifest in an OCI layout
//     appears at once or not at all, also for other processes.
//   - Credentials go to the registry that they are for and to the token server
//     it names, by the rules of go-containerregistry. Plain HTTP is for loopback
//     addresses unless Options says otherwise. No error holds a secret.
//
// What they do not: nothing here decompresses a layer or looks into one, and
// pushing a manifest does not push what it refers to.
//
// Methods may be called by several goroutines at once. Only a Layer of a
// directory starts a goroutine, which ends with its reader's Close.
package image
