// Package erofs mounts lazy images with the kernel's EROFS: the metadata is an
// image on the node's disk, and the content lies on device files, of which the
// kernel is told by fanotify to ask before it reads what may be missing.
//
// # What is guaranteed
//
// Nothing is read from a part of a device that is not filled: a device that is
// not complete has a mark, whose group of events has its own file descriptors,
// held by this process and by a Keeper. While nobody answers, readers wait; when
// the next process has adopted the group it answers what its predecessor has
// left. A reader whose content cannot be had gets EIO.
//
// When the last descriptor of a group is closed the kernel lets readers go on,
// onto zeros. So a mount with a device whose group cannot be adopted is never
// used again: Adopt takes it away and reports backend.ErrLost. What is open in it
// goes on: its other devices stay guarded, and the one that was lost is guarded
// again, so that only what was read meanwhile may be wrong. If it cannot be known
// now whether a group is lost, because a keeper gives no answer, Adopt changes
// nothing.
//
// # How long
//
// A file system may have users long after its mount was taken away, by Unmount or
// by others: open files, overlays, other mount namespaces. Its devices are
// referenced, and so not evicted, and guarded until the kernel says that it has
// ended. The keeper is told of users without a mount, whose end a later process
// cannot see: it guards their devices until they are complete.
//
// # Order
//
// A group is put into the keeper before its mark is set, and its mark is set
// before the device is mounted. What fills the device was opened before the mark
// was set, and so raises no events. A device that is complete, durably, loses its
// mark, and its reads cost what those of any file cost. A mark is taken away
// before its group is dropped: a keeper that cannot be reached may keep the group.
package erofs
