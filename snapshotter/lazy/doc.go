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
// snapshot on top of it is made, and stays until its topmost snapshot is removed.
//
//	<dir>/indexes/<sha256>   the index of a layer, as it was stored
//	<dir>/mounts/<chain>/    meta.erofs, mount.json, and root, where it is mounted
//
// Who may have what is settled before: containerd has read the image's manifest
// with its own credential. An index binds its layers by their diff IDs, and a
// layer is only ever found by its chain ID, which those make up: an index cannot
// speak for layers of other images than those it was trusted for.
package lazy
