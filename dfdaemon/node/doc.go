// Package node is the daemon's face for programs on its own node: the gRPC
// service Node on a unix socket.
//
// Whoever may open the socket may read what the node holds. What has to be
// fetched is subject to registries' permission checks: with the credential that
// a source has, or, for a registry's blob without one, by the node's own
// authority (package authority).
package node
