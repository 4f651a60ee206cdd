// Package dfdaemon puts a node's daemon together: the registry mirror and the
// file proxy that clients pull through, the store and download engine behind
// them, the server that passes pieces on to other nodes, the link to the
// supernode, and the socket for programs on the node.
//
// Run holds the listeners and the data directory for as long as its context
// lives. In the data directory are the pieces (cache/) and the grants (grants/).
// Whatever is lost of it is fetched again.
package dfdaemon
