// Package fuse mounts lazy images through FUSE: for kernels without
// FAN_PRE_ACCESS, and where there is no EROFS.
//
// # What is guaranteed
//
//   - A read returns the bytes of the tree or fails with EIO; it never returns
//     bytes of a group that is not present. A fill that fails costs the reads
//     that needed it, and no others: nothing of it is cached.
//   - While nobody reads the FUSE device (the process has died or is being
//     replaced), readers wait. Adopt goes on with the requests that the earlier
//     process had read and not answered. That needs Linux 6.9 and a Keeper that
//     has held the device meanwhile; without either, Adopt ends the mount, and
//     its users get ENOTCONN.
//   - A process that is killed while it waits for a fill goes away; any other
//     signal does not make a read fail.
//
// # What the kernel sees
//
// The tree does not change, so names, attributes, links and pages are cached
// without an end. The node id of an inode is its number in the tree plus one;
// no table of nodes exists, nothing is lost with a process, and a later one
// that merges the layers to another numbering refuses to adopt.
//
// Extended attributes are those that package chunkfmt/erofs keeps. In an image
// that has none, asking for one gives EOPNOTSUPP instead of ENODATA, for then
// the kernel does not ask again: overlayfs looks for them at every lookup.
// POSIX ACLs are obeyed if the image has any. Files are never opened at this
// end, so that opening costs no round trip. There is no passthrough: reads from
// the page cache are as fast as those of ext4 without it, it would need a copy
// of each file at the file's own offsets, and it takes one of the two levels
// that the kernel allows to stacked file systems, so that overlayfs on overlayfs
// would not work in containers.
//
// # What it costs
//
// Mounts of one image share its names and places, some 100 bytes for each file.
// A mount adds about 30 KiB, and no thread of its own. Pages that were read are
// in the page cache once: those of the device are given back.
package fuse
