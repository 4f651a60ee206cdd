package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// blob is what chunks lie in: made by this build, in place, or of the
// dictionary.
type blob struct {
	number uint32 // in packer.blobs

	// Of the packer.
	layer  int    // the lowest layer that uses it, -1: none yet
	count  uint32 // groups so far
	device int64  // taken of the device so far

	// Of the writer; complete when the layer that makes it has ended.
	chunkfmt.Blob
	file *os.File
	hash hash.Hash
}

// reserve takes n bytes of the device and returns where they begin.
func (b *blob) reserve(n int64) int64 {
	at := b.device
	b.device += alignUp(n)
	return at
}

// layerEnd is what the packer hands to the writer at the end of a layer.
type layerEnd struct {
	scan        *scan
	data, image *blob
	// chunks of the layer; their Blobs are places in blobs.
	chunks []chunkfmt.Chunk
	blobs  []*blob
	// external says which blobs a lower layer has defined.
	external []bool
	// devices are the sizes of the new blobs' devices.
	dataDevice, imageDevice int64
}

// useBlobs lists the blobs of the chunks, whose Blob fields are places in all.
func (e *layerEnd) useBlobs(all []*blob) {
	places := map[uint32]uint32{}
	for i := range e.chunks {
		c := &e.chunks[i]
		if c.Blob == chunkfmt.Hole {
			continue
		}
		at, ok := places[c.Blob]
		if !ok {
			b := all[c.Blob]
			at = uint32(len(e.blobs)) //nolint:gosec // G115: at most two for each layer
			places[c.Blob] = at
			e.blobs = append(e.blobs, b)
			e.external = append(e.external, b.layer >= 0)
			if b.layer < 0 {
				b.layer = e.scan.at
			}
		}
		c.Blob = at
	}
	if e.data != nil {
		e.dataDevice = e.data.device
	}
	if e.image != nil {
		e.imageDevice = e.image.device
	}
}

// writer writes groups into blobs in the order of the packer, and finishes the
// layers. It is one goroutine.
type writer struct {
	b    *builder
	open []*blob
}

func (w *writer) run(ctx context.Context) error {
	defer w.discard()
	for {
		select {
		case t, more := <-w.b.order:
			if !more {
				return nil
			}
			if err := w.task(ctx, t); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *writer) task(ctx context.Context, t *task) error {
	if t.done != nil {
		select {
		case <-t.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if t.end != nil {
		return w.endLayer(t.end)
	}
	if t.stored != nil {
		if err := w.write(t); err != nil {
			return err
		}
	}
	g := t.group
	g.Offset = t.blob.Size
	if t.filler {
		g = chunkfmt.Group{Offset: g.Offset, Stored: g.Stored, Digest: g.Digest, Codec: chunkfmt.Filler}
	}
	t.blob.Size += int64(g.Stored)
	t.blob.Groups = append(t.blob.Groups, g)
	return nil
}

func (w *writer) write(t *task) error {
	b := t.blob
	if b.file == nil {
		f, err := os.CreateTemp(w.b.dir, ".blob-*")
		if err != nil {
			return fmt.Errorf("making a blob: %w", err)
		}
		b.file, b.hash = f, sha256.New()
		w.open = append(w.open, b)
	}
	b.hash.Write(t.stored)
	if _, err := b.file.Write(t.stored); err != nil {
		return fmt.Errorf("writing a blob: %w", err)
	}
	if t.pooled {
		w.b.outputs.put(t.stored)
	} else {
		w.b.giveBack(t)
	}
	t.stored = nil
	return nil
}

// endLayer finishes the blobs of a layer and makes its index.
func (w *writer) endLayer(e *layerEnd) error {
	r := LayerResult{Plain: e.scan.plain, Stored: e.scan.stored, Stats: e.scan.stats, Warnings: e.scan.warnings}
	if e.data != nil {
		e.data.DeviceSize = e.dataDevice
		f, err := w.finish(e.data)
		if err != nil {
			return err
		}
		r.Blobs = append(r.Blobs, f)
	}
	if e.image != nil {
		e.image.DeviceSize = e.imageDevice
		if e.scan.inPlace {
			e.image.Digest = e.scan.digest
			r.InPlace = true
		} else {
			f, err := w.finish(e.image)
			if err != nil {
				return err
			}
			r.Image = &f
		}
	}
	if err := e.freeze(&r); err != nil {
		return fmt.Errorf("layer %d (%s): %w", e.scan.at, e.scan.layer.Name, err)
	}
	w.b.results = append(w.b.results, r)
	return nil
}

// finish gives a blob its name.
func (w *writer) finish(b *blob) (BlobFile, error) {
	b.Digest = sum(b.hash)
	temp := b.file.Name()
	if err := b.file.Close(); err != nil {
		return BlobFile{}, fmt.Errorf("writing a blob: %w", err)
	}
	name := filepath.Join(w.b.dir, hex.EncodeToString(b.Digest[:]))
	_, err := os.Lstat(name)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := os.Rename(temp, name); err != nil {
		return BlobFile{}, fmt.Errorf("naming a blob: %w", err)
	}
	w.drop(b)
	if fresh {
		w.b.made = append(w.b.made, name)
	}
	return BlobFile{Digest: b.Digest, Size: b.Size, Path: name}, nil
}

// drop forgets an open blob.
func (w *writer) drop(b *blob) {
	b.file, b.hash = nil, nil
	for i := range w.open {
		if w.open[i] == b {
			w.open = append(w.open[:i], w.open[i+1:]...)
			return
		}
	}
}

// discard removes the files of blobs that were not finished.
func (w *writer) discard() {
	for _, b := range w.open {
		_ = b.file.Close()
		_ = os.Remove(b.file.Name()) // nobody will ask for it
	}
}
