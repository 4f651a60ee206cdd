// Package backend is what the snapshotter asks of a way to mount lazy images.
//
// There are two ways: package erofs, the kernel's EROFS with devices that are
// filled when a fanotify event asks for it, and package fuse. A suite that both
// pass is in package backendtest.
package backend

import (
	"context"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// Filler brings what is missing to devices.
type Filler interface {
	// Fill returns when all groups that fill some of the n bytes of d at off are
	// present. Callers that need one group at the same time share one fetch. The
	// error is nil, that of ctx, or why a group cannot be had by anybody now: the
	// reader gets EIO.
	Fill(ctx context.Context, d *device.Device, off, n int64) error
}

// Image is a merged tree that can be mounted.
type Image struct {
	// ID names the image on this node: 64 hexadecimal digits, good as a file
	// name.
	ID string
	// Meta is the path of the EROFS image with the metadata (chunkfmt/erofs).
	Meta string
	// Devices in the order in which the EROFS image has them. They are open for
	// as long as the image is mounted.
	Devices []*device.Device
	// Tree returns the merged tree. It may take a while and much memory: only
	// what cannot work from Meta calls it, and does not keep more of it than it
	// needs.
	Tree func(ctx context.Context) (*chunkfmt.Tree, error)
	// Device returns the device of a blob of the tree, by chunkfmt's
	// Tree.DeviceKey; nil if there is none.
	Device func(key device.Key) *device.Device
}

// Mount is a mounted image.
type Mount interface {
	// Unmount takes the mount away and gives back all that it used. What is open
	// in it goes on until it is closed.
	Unmount(ctx context.Context) error
}

// Backend mounts images.
type Backend interface {
	// Name is "erofs" or "fuse".
	Name() string
	// Mount mounts an image at dir, an empty directory.
	Mount(ctx context.Context, im *Image, dir string) (Mount, error)
	// Adopt takes over what an earlier process has mounted at dir, without a
	// moment in which a reader could get wrong bytes. The error wraps ErrLost if
	// that is not possible: then nothing of the earlier mount may be read any
	// more, and Adopt has taken it away.
	Adopt(ctx context.Context, im *Image, dir string) (Mount, error)
	// Close ends what the backend runs. Mounts stay, for Adopt.
	Close() error
}
