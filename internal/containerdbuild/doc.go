// Package containerdbuild builds the releases of containerd that Damselfly is
// tested and measured with, from the modules under tools/containerd, each of
// which pins one release. Debian's own containerd is older than all of them.
//
// What is built is the daemon, ctr and the shim for runc, static, without the
// snapshotters for btrfs, zfs and device mapper. Files are kept under bin of
// this module: a second Build finds them up to date within a second or two. A
// first one takes minutes and fetches modules.
package containerdbuild
