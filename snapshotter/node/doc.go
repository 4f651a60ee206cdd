// Package node is the snapshotter's link to the dfdaemon of its node.
//
// A Client reads ranges of blobs over the daemon's socket, cut into pieces where
// their groups end, and lends an http.RoundTripper with which registries are
// asked through the daemon. It holds no credential: the daemon has them, and its
// list of registries decides where they are.
//
// A Client connects when it is first used, and again whenever the daemon has
// gone away; a daemon that restarts fails the calls under way, and none after it
// is back. Errors say what the caller can do: ErrUnreachable and all that is
// not Permanent may pass, ErrFull passes when there is room again.
//
// What the daemon sends is not verified here.
package node
