// Package dfdaemon puts a node's daemon together: the registry mirror and the
// file proxy that clients pull through, the store and download engine behind
// them, the server that passes pieces on to other nodes, the link to the
// supernode, and the sockets for programs on the node.
//
// Beside the socket that is configured (NAME.sock) are two more, for its owner
// alone: NAME-http.sock, the registry mirror by the node's own authority, and
// NAME-fds.sock, where the snapshotter leaves descriptors that must outlive it.
//
// Run holds the listeners and the data directory for as long as its context
// lives. In the data directory are the pieces (cache/) and the grants (grants/).
// Whatever is lost of it is fetched again.
package dfdaemon
