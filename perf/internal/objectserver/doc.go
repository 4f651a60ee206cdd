// Package objectserver is the origin of the benchmarks: a static HTTP server
// for objects of random bytes, and the baseline to compare with.
//
// It serves every object of a directory as a blob of an OCI registry and as a
// plain file, with sendfile and range requests, and counts what it is asked and
// what it sends:
//
//	GET /v2/                            200, as registries answer
//	GET, HEAD /v2/REPO/blobs/sha256:…   the object of that digest
//	GET, HEAD /files/sha256:…           the same under another address
//	GET /stats                          Stats as JSON; not counted itself
//
// Nothing is checked before it is served: the directory is the caller's.
package objectserver
