// Package erofs writes EROFS images of trees, for the kernel to mount.
//
// Write makes an image that has the metadata only: names, attributes, symbolic
// links and tiny files are in it, and the content of all other files lies on
// external devices, one for each blob (chunkfmt.Blob.DeviceSize). Export makes
// one that needs no devices.
//
// # What is guaranteed
//
//   - Equal trees and options give equal bytes.
//   - The image is written front to back, once; what is held in memory is some
//     five bytes for each inode, twelve for each chunk, and a buffer.
//   - The kernel shows the tree as it is: names, types, modes, owners, times
//     with nanoseconds, link counts, device numbers, targets, contents and
//     those extended attributes that Linux has (see below).
//   - What cannot be shown is an error that names the path. Nothing is left
//     out, with one exception.
//   - Images of Write can be mounted by Linux 5.16 and later, those of Export
//     by 5.15; from plain files, without a loop device, since 6.12.
//
// The exception: extended attributes whose names Linux knows no handler for
// ("com.apple.…") are left out and counted in Image.Dropped. Setting them fails
// with ENOTSUP on every Linux file system, and containerd's unpacking ignores
// that as well.
//
// # What is expected
//
// Trees are valid: they come from Decode, Merge or Freeze. A tree that still
// has whiteouts or links out of it must be merged first. Every page of a file
// must lie in one page of a device, at the same place in it; a hole that begins
// or ends amid a page is zeros on the device. What cannot be mapped so is an
// error, ErrUnmappable.
//
// # Format
//
// Only the part of the format that kernels of all these releases read alike is
// used: 4 KiB blocks, 64-byte inodes (32-byte ones have no time of their own
// before Linux 6.15), data in the inode's block ("flat inline"), in plain
// blocks, or in chunks of a power of two with 8-byte indexes. The superblock
// has its checksum.
package erofs
