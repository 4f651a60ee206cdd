// Package mirror is the registry mirror of a node: containerd, Docker, CRI-O and
// Podman pull through it by configuration alone.
//
// It answers the reading half of the OCI distribution API under /v2/. Which
// registry is meant, the "ns" query parameter says, or the first element of the
// path if that is an allowed registry (HOST:65001/<registry>/<repository>), or
// else it is docker.io. Registries that are not allowed get 403.
//
// Blobs come through the swarm. Everything else is asked of the registry, by
// way of the supernode, with the client's own credential; challenges (401) and
// refusals reach the client as the registry gave them. What is named by digest
// is checked against it.
//
// Bytes of a blob go only to a client whose own credential the registry has
// accepted for the repository, now or a short time ago, whether or not this node
// holds them already. While the registry cannot be reached, a credential that
// was accepted for a manifest before (a grant) still gets that manifest and its
// blobs; others are refused with 503.
//
// Tokens are kept in memory only. The mirror is plain HTTP and meant to listen
// on loopback.
package mirror
