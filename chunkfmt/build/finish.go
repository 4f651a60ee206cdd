package build

import (
	"fmt"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
)

// freeze makes the index of a layer whose blobs are finished.
func (e *layerEnd) freeze(r *LayerResult) error {
	blobs := make([]chunkfmt.Blob, len(e.blobs))
	for i, b := range e.blobs {
		blobs[i] = b.Blob
		if e.external[i] {
			blobs[i] = chunkfmt.Blob{Digest: b.Digest, Size: b.Size, DeviceSize: b.DeviceSize, External: true}
		}
	}
	tree, err := e.scan.draft.Freeze(e.chunks, blobs)
	if err != nil {
		return err
	}
	e.scan.draft = nil
	x := &chunkfmt.Index{Tree: *tree, DiffID: e.scan.diffID, Root: merkle.Root(tree)}
	if r.Encoded, err = chunkfmt.Encode(x); err != nil {
		return fmt.Errorf("encoding the index: %w", err)
	}
	r.Index = x
	return nil
}

// merged returns the Merkle root of all layers together.
func merged(layers []LayerResult) (chunkfmt.Digest, error) {
	trees := make([]*chunkfmt.Tree, len(layers))
	for i := range layers {
		trees[i] = &layers[i].Index.Tree
	}
	tree, err := chunkfmt.Merge(trees...)
	if err != nil {
		return chunkfmt.Digest{}, fmt.Errorf("merging the layers: %w", err)
	}
	return merkle.Root(tree), nil
}
