// Package lazy decides which layers of containerd's images are mounted instead
// of pulled, and mounts them.
//
// For a layer that containerd is about to fetch, Images.Layer looks for a trusted
// index of its image through the node's dfdaemon. What it finds is kept on disk
// under the data directory before it says yes, so that nothing but the local
// disk is needed to mount the layer later: after a restart, with the registry
// down, for another image that shares the layer. A layer that it says no to is
// pulled as always, and the Reason says why.
//
// A chain of lazy layers is mounted once, as one merged tree, when the first
// snapshot on top of it is made, and stays until its topmost snapshot is removed,
// or until it was not used for a while.
//
//	<dir>/indexes/<sha256>   the index of a layer, as it was stored
//	<dir>/mounts/<chain>/    meta.erofs, mount.json, and root, where it is mounted
//
// An index is on disk, durably, for as long as a lookup that counts, a lazy layer
// or a mount holds it. The directory of a mount can be made from the indexes at
// any time, and is when it is found damaged; mount.json is written before the
// backend mounts, so that what a crash has left mounted is taken over.
//
// Who may have what is settled before: containerd has read the image's manifest
// with its own credential. Containerd shares a layer by its chain ID, which the
// diff IDs make up, with every image that has it, and asks nobody. So whoever
// vouches for an index vouches for its layers' diff IDs too: a signer does, and the
// author of an image whose manifest binds its index is believed to, unless
// Options.RefuseBound is set. A mount that was made by one image's indexes before
// anybody used it is not handed out for another's.
package lazy
