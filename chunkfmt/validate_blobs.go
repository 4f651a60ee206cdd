package chunkfmt

import (
	"crypto/sha256"
	"fmt"
)

// maxBlobSize bounds the stored bytes of a blob, which only that of an External
// one could reach.
const maxBlobSize = 1 << 62

func (v *validator) checkBlobs() error {
	seen := make(map[Digest]bool, len(v.Blobs))
	for i := range v.Blobs {
		b := &v.Blobs[i]
		if seen[b.Digest] || b.Digest.IsZero() {
			return invalid("blob %d has no digest of its own: %s", i, b.Digest)
		}
		seen[b.Digest] = true
		if err := v.checkBlob(b); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return nil
}

func (v *validator) checkBlob(b *Blob) error {
	switch {
	case b.Size <= 0 || b.Size > maxBlobSize:
		return invalid("size %d", b.Size)
	case b.DeviceSize < 0 || b.DeviceSize > MaxFileSize || b.DeviceSize%BlockSize != 0:
		return invalid("device size %d", b.DeviceSize)
	case !b.External:
		return checkGroups(b)
	case len(b.Groups) != 0:
		return invalid("the blob is external, but has %d groups", len(b.Groups))
	case !v.layer:
		return invalid("the blob is external in a merged tree")
	}
	return nil
}

func checkGroups(b *Blob) error {
	offset, device := int64(0), int64(0)
	for i := range b.Groups {
		g := &b.Groups[i]
		if g.Offset != offset {
			return invalid("group %d begins at byte %d, not %d", i, g.Offset, offset)
		}
		offset += int64(g.Stored)
		if err := checkGroup(g, b.Unproven); err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
		var err error
		if device, err = checkDevice(g, device); err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
	}
	if offset != b.Size {
		return invalid("the groups have %d of %d bytes", offset, b.Size)
	}
	if device > b.DeviceSize {
		return invalid("the device has %d bytes, %d are needed", b.DeviceSize, device)
	}
	return nil
}

func checkGroup(g *Group, unproven bool) error {
	switch {
	case g.Codec >= codecs:
		return invalid("unknown codec %d", g.Codec)
	case g.Stored == 0 || g.Stored > MaxGroupStored:
		return invalid("%d stored bytes", g.Stored)
	case g.Plain > MaxGroupPlain:
		return invalid("%d plain bytes, at most %d are possible", g.Plain, MaxGroupPlain)
	case g.Codec == Filler && (g.Plain != 0 || g.Segments != nil || g.Device != 0):
		return invalid("a filler has content")
	case g.Codec != Filler && g.Plain == 0:
		return invalid("no plain bytes")
	case g.Codec == Plain && g.Plain != g.Stored:
		return invalid("%d bytes are stored as %d without compression", g.Plain, g.Stored)
	case g.Digest.IsZero() != unproven:
		return invalid("digest %s", g.Digest)
	}
	return nil
}

// checkDevice checks the place of a group in the device, which is taken up to
// end, and returns the new end.
func checkDevice(g *Group, end int64) (int64, error) {
	if g.linear() {
		if g.Device%BlockSize != 0 || g.Device < end || g.Device > MaxFileSize {
			return 0, invalid("device place %d, taken up to %d", g.Device, end)
		}
		return g.Device + int64(g.Plain), nil
	}
	if g.Device != 0 {
		return 0, invalid("device place %d beside segments", g.Device)
	}
	plain := int64(0)
	for i := range g.Segments {
		s := &g.Segments[i]
		switch {
		case s.Length == 0 || int64(s.Offset) < plain || int64(s.Offset)+int64(s.Length) > int64(g.Plain):
			return 0, invalid("segment %d has %d bytes at %d of %d", i, s.Length, s.Offset, g.Plain)
		case s.Device < end || s.Device > MaxFileSize:
			return 0, invalid("segment %d: device place %d, taken up to %d", i, s.Device, end)
		}
		plain = int64(s.Offset) + int64(s.Length)
		end = s.Device + int64(s.Length)
	}
	return end, nil
}

// checkChunks also fills v.devices.
func (v *validator) checkChunks() error {
	v.devices = make([]int64, len(v.Chunks))
	v.used = make([]bool, len(v.Chunks))
	zeros := zeroHash{h: sha256.New()}
	var at chunkCursor
	for i := range v.Chunks {
		c := &v.Chunks[i]
		if c.Length == 0 || c.Length > MaxGroupPlain || c.Offset > MaxGroupPlain || c.Digest.IsZero() {
			return invalid("chunk %d has %d bytes at %d and digest %s", i, c.Length, c.Offset, c.Digest)
		}
		if i > 0 && !follows(&v.Chunks[i-1], c) {
			return invalid("chunk %d overlaps or is not in order", i)
		}
		v.devices[i] = nowhere
		if c.Blob == Hole {
			if c.Group != 0 || c.Offset != 0 || c.Digest != zeros.sum(int64(c.Length)) {
				return invalid("chunk %d is not a hole of %d bytes", i, c.Length)
			}
			continue
		}
		if int64(c.Blob) >= int64(len(v.Blobs)) {
			return invalid("chunk %d is in blob %d of %d", i, c.Blob, len(v.Blobs))
		}
		device, err := v.placeOf(c, &at)
		if err != nil {
			return fmt.Errorf("blob %s: group %d: %w", v.Blobs[c.Blob].Digest, c.Group, err)
		}
		v.devices[i] = device
	}
	return nil
}

// follows reports that a chunk may stand after another.
func follows(a, b *Chunk) bool {
	switch {
	case a.Blob == Hole && b.Blob == Hole:
		return a.Length < b.Length
	case a.Blob == Hole || b.Blob == Hole:
		return a.Blob == Hole
	case a.Blob != b.Blob:
		return a.Blob < b.Blob
	case a.Group != b.Group:
		return a.Group < b.Group
	}
	return a.Offset+a.Length <= b.Offset
}

// placeOf returns where a chunk lies in the device of its blob.
func (v *validator) placeOf(c *Chunk, at *chunkCursor) (int64, error) {
	b, end := &v.Blobs[c.Blob], c.Offset+c.Length
	if b.External {
		if end > MaxGroupPlain {
			return 0, invalid("a chunk of %d bytes at %d", c.Length, c.Offset)
		}
		return nowhere, nil
	}
	if int64(c.Group) >= int64(len(b.Groups)) {
		return 0, invalid("a chunk, but the blob has only %d groups", len(b.Groups))
	}
	g := &b.Groups[c.Group]
	if g.Codec == Filler || end > g.Plain {
		return 0, invalid("a chunk of %d bytes at %d of %d", c.Length, c.Offset, g.Plain)
	}
	if g.linear() {
		if c.Offset%BlockSize != 0 {
			return 0, invalid("a chunk at %d, which is no multiple of %d", c.Offset, BlockSize)
		}
		return g.Device + int64(c.Offset), nil
	}
	at.enter(v.Tree, c)
	limit, _ := at.limit(c.Offset)
	if c.Length > limit {
		return 0, invalid("a chunk of %d bytes at %d is not in one segment", c.Length, c.Offset)
	}
	at.leave(c)
	s := &g.Segments[at.seg]
	return s.Device + int64(c.Offset-s.Offset), nil
}
