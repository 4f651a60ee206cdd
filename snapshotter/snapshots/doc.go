// Package snapshots is containerd's Snapshotter with lazy layers.
//
// Ordinary layers, the metadata and the writable layers of containers are those
// of containerd's overlayfs snapshotter, which it wraps: for an image without
// lazy layers it is one, with the same directories and mounts.
//
// A lazy layer is a committed snapshot without content of its own. It comes into
// being when containerd is about to unpack a layer (Prepare with the label
// containerd.io/snapshot.ref) and Images says yes: the snapshot is committed at
// once, in one transaction, and the answer is ErrAlreadyExists, upon which
// containerd neither fetches nor unpacks the layer. It has one name per chain ID,
// so that namespaces share it. A layer is lazy only if all layers below it are;
// ordinary layers may be above lazy ones. An ordinary layer's label LabelReason
// says why it is not lazy.
//
// When a snapshot is made on top of lazy layers, Images mounts the merged tree of
// all of them at one directory, which takes the place of their directories in the
// mounts that overlayfs returns. Mounts does so again after a restart.
//
// When containerd unpacks layers in parallel it does not tell the parent before
// Commit. Then nothing is committed early: with Options.Staged the layer is
// returned as a read-only snapshot, which containerd 2.4 and later take for
// unpacked and commit in its turn, and else it is ordinary.
//
// What is guaranteed:
//
//   - A crash at any point leaves no half-made lazy layer; directories without a
//     record are removed by New. Nothing is undone when the process ends: mounts
//     and snapshots stay as they are.
//   - Labels that this package decides by cannot be set from outside. An image's
//     layers may carry any annotation below containerd.io/snapshot/, and
//     containerd makes labels of them: LabelRemote and what begins with
//     LabelPrefix are dropped from them, and kept by Update.
//   - Two processes never use one root: the second one's New fails.
//
// What is not: that a mount is there for as long as its snapshot. It is there
// from Prepare, View or Mounts of a snapshot until that is removed.
package snapshots
