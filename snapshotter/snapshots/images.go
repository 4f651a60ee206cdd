package snapshots

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// Images knows which layers can be lazy, and mounts them.
//
// Chain IDs identify layers: a chain ID names the content of a layer and of all
// below it. Calls that name the same topmost chain ID never run at the same time,
// except Usage; others do.
type Images interface {
	// Layer decides whether a layer that containerd is about to unpack is lazy. It
	// is asked only if all layers below are lazy and no lazy snapshot with its chain
	// ID is there that could be used again.
	//
	// A yes promises that Mounted can mount the layer from now on without anybody
	// else's help, and that its content is what the chain ID says: containerd will
	// use the snapshot for every image with that chain ID, without asking again. It
	// counts until Removed names the chain ID or, after a restart, Restore does not.
	//
	// No error fails a pull: the reason for a no is given instead. If ctx ends, the
	// answer is dropped.
	Layer(ctx context.Context, r Request) Decision

	// Mounted returns the directory where the merged tree of a chain of lazy layers,
	// lowest first, is mounted, mounting it if need be. It stays mounted at least
	// until Idle or Removed names the topmost layer's chain ID.
	//
	// The directory's path is absolute and free of ':', ',' and '\'. It should be
	// below the directory that has Options.Root, and alone in its own parent
	// directory: containerd shortens long lists of lower directories by what they
	// have in common, and for a container with a user namespace it maps the whole
	// directory that is common to all, or the parent of the only one.
	Mounted(ctx context.Context, chain []Layer) (dir string, err error)

	// Idle says that no active snapshot or view uses the mount of a chain ID now,
	// also after Mounted has failed. It may be taken away at leisure; Mounted may ask
	// for it again at once.
	Idle(ctx context.Context, chainID string)

	// Removed says that no lazy snapshot with the chain ID is left.
	Removed(ctx context.Context, chainID string)

	// Usage is what a layer takes on this node, without the layers below. Containerd
	// asks often, for all layers.
	Usage(ctx context.Context, l Layer) (snapshots.Usage, error)

	// Restore is called once, by New, with all lazy layers that are there. What is
	// kept of others can go. An error fails New; a layer that is damaged is no error:
	// Mounted can say so when it is wanted.
	Restore(ctx context.Context, layers []Restored) error
}

// Layer is a lazy layer.
type Layer struct {
	// ChainID is a valid digest.
	ChainID string
	// Labels of its snapshot: those of Decision, and what containerd and the image
	// said when it was made.
	Labels map[string]string
}

// Request is a layer that containerd is about to unpack.
type Request struct {
	// ChainID is that of the layer, a valid digest. If containerd says the diff ID
	// too, then that and the chain ID of the layer below make it up.
	ChainID string
	// Labels as containerd sent them. Annotations of the image's manifest are among
	// them, so nothing in them can be trusted.
	Labels map[string]string
	// Below are the layers below it, lowest first; all are lazy. Where containerd
	// unpacks in parallel it is empty.
	Below []Layer
}

// Decision is what becomes of a layer.
type Decision struct {
	// Lazy is whether it is mounted instead of pulled.
	Lazy bool
	// Labels are added to a lazy layer's snapshot. Their keys begin with
	// LabelPrefix; key and value have at most 4096 bytes together.
	Labels map[string]string
	// Reason says why the layer is not lazy.
	Reason Reason
}

// Reason is why a layer is not lazy.
type Reason struct {
	// Code is a short word for metrics: of a small set.
	Code string
	// Detail is for people.
	Detail string
}

// String is one line.
func (r Reason) String() string {
	if r.Detail == "" {
		return r.Code
	}
	return r.Code + ": " + r.Detail
}

// The codes of this package.
const (
	// ReasonParent says that a layer below is ordinary.
	ReasonParent = "parent-pulled"
	// ReasonParallel says that containerd unpacks in parallel and that Options.Staged
	// is not set.
	ReasonParallel = "parallel-unpack"
	// ReasonLabels says that the labels contradict each other or the snapshots that
	// are there, or that they name no layer.
	ReasonLabels = "labels"
)

// Restored is a lazy layer that New has found.
type Restored struct {
	// Chain is the layer and those below it, lowest first.
	Chain []Layer
	// Used is whether there are active snapshots or views for which Mounted had
	// mounted the chain.
	Used bool
}
