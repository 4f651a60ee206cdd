// Package snapshotter puts the node's containerd snapshotter together: the
// snapshots service that containerd talks to, the lookup of indexes and the
// mounts of lazy images, the devices that hold their content, what fills those,
// and the backend that mounts.
//
// Run holds the socket and the data directory for as long as its context lives.
// When it ends, what is mounted stays mounted: readers that need something wait
// for the next Run, which takes the mounts over. RunKeeper is the process that
// holds the kernel's files meanwhile.
package snapshotter
