package erofs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// ErrUnmappable is wrapped by errors about content that no page can be mapped
// to: it is on no device, or a page of a file is not in one page of a device.
var ErrUnmappable = errors.New("content cannot be mapped")

// ErrTooLarge is wrapped by errors about a tree whose metadata would exceed
// Options.MaxBytes. Small trees can have large metadata: a sparse file of 1 TB
// with one odd block takes 2 GiB.
var ErrTooLarge = errors.New("EROFS image too large")

const (
	// DefaultMaxBytes is the default of Options.MaxBytes: 1 GiB, which is some
	// five million inodes.
	DefaultMaxBytes = 1 << 30
	// MaxBytes is the most that Options.MaxBytes may be.
	MaxBytes = 64 << 30

	// maxBlocks leaves out the number that stands for a hole.
	maxBlocks = 1<<32 - 1
)

// Options are settings of an image. The zero Options are usable.
type Options struct {
	// Root is the Merkle root of the tree. The image's UUID is its first 16
	// bytes; the default is none.
	Root chunkfmt.Digest
	// MaxBytes bounds the metadata: all of the image of Write, and what Export
	// writes besides the content of files. The default is DefaultMaxBytes, and
	// more than MaxBytes is taken as MaxBytes.
	MaxBytes int64
}

func (o *Options) maxBytes() int64 {
	if o.MaxBytes <= 0 {
		return DefaultMaxBytes
	}
	return min(o.MaxBytes, MaxBytes)
}

// Image describes an image that was written.
type Image struct {
	// Size in bytes, a multiple of 4096.
	Size int64
	// Meta is the number of bytes before the content of files: Size, but for
	// an export.
	Meta int64
	// Devices are the blobs that the image needs, as places in Tree.Blobs, in
	// the order in which their devices must be given to the kernel.
	Devices []uint32
	// Dropped is the number of extended attributes that were left out because
	// Linux has no such names.
	Dropped int
}

// MountOptions returns the "device=" options that the kernel needs to mount an
// image, given the path of each blob's device. A comma in a path would end the
// option in mount(2); fsconfig(2), which also has no bound on the length of all
// options together, takes it as it is. mount(8) may put a loop device before an
// image that is a file; the kernel then wants block devices for the others, too.
func (im *Image) MountOptions(path func(blob uint32) string) []string {
	options := make([]string, len(im.Devices))
	for i, blob := range im.Devices {
		options[i] = "device=" + path(blob)
	}
	return options
}

// Write writes the image of a merged tree whose files lie on devices. The
// devices of blobs that no file needs are left out.
//
// Errors are those of w or say which path they are about; see ErrUnmappable and
// ErrTooLarge.
func Write(w io.Writer, t *chunkfmt.Tree, o Options) (*Image, error) {
	p, err := newPlan(t, mapDevices(t), o)
	if err != nil {
		return nil, err
	}
	s := newSink(w)
	p.metadata(s, p.dataBlock())
	if err := s.flush(); err != nil {
		return nil, fmt.Errorf("write an EROFS image: %w", err)
	}
	return p.image(s), nil
}

func (p *plan) image(s *sink) *Image {
	return &Image{Size: s.pos(), Meta: p.dataBlock() * blockSize, Devices: p.devices, Dropped: p.dropped}
}

// metadata writes everything but the content of an export. blocks is the number
// that the image will have with it.
func (p *plan) metadata(s *sink, blocks int64) {
	p.header(s, blocks)
	base := p.metaBlock() * blockSize
	block := p.spillBlock()
	for i := range p.nids {
		if s.err != nil {
			return
		}
		s.pad(base + int64(p.nids[i])*inodeUnit)
		block += p.inode(s, uint32(i), block)
	}
	s.pad(p.spillBlock() * blockSize)
	for _, i := range p.spilled {
		if s.err != nil {
			return
		}
		p.spill(s, i)
	}
}

// header writes the superblock and the device table.
func (p *plan) header(s *sink, blocks int64) {
	b := s.take(blockSize)
	super := superblock{
		rootNID:   firstInode / inodeUnit,
		inodes:    uint64(len(p.nids)),
		blocks:    uint32(blocks),        //nolint:gosec // bounded by MaxBytes, and by Export
		metaBlock: uint32(p.metaBlock()), //nolint:gosec // a small number
		uuid:      p.uuid,
		devices:   uint16(len(p.devices)), //nolint:gosec // at most maxDevices
	}
	if p.chunked {
		super.incompat |= incompatChunked
	}
	if len(p.devices) > 0 {
		super.incompat |= incompatDevices
	}
	super.encode(b[superOffset:])
	inFirst := min(len(p.devices), slotsInFirstBlock)
	for i, blob := range p.devices[:inFirst] {
		encodeSlot(b[(slotFirst+i)*slotSize:], &p.t.Blobs[blob])
	}
	le.PutUint32(b[superOffset+4:], checksum(b))
	for _, blob := range p.devices[inFirst:] {
		encodeSlot(s.take(slotSize), &p.t.Blobs[blob])
	}
}

// encodeSlot writes a blob's slot of the device table. The device has no
// address in the image's own space: it is always given to the kernel.
func encodeSlot(b []byte, blob *chunkfmt.Blob) {
	hex.Encode(b[:64], blob.Digest[:])
	le.PutUint32(b[64:], uint32(blob.DeviceSize/blockSize)) //nolint:gosec // checked by numberDevices
}

// inode writes an inode and what is inline. block is the first of its own
// blocks, of which it returns the number.
func (p *plan) inode(s *sink, i uint32, block int64) int64 {
	n, a := &p.t.Inodes[i], p.t.Attr(i)
	sh := p.shape(i)
	d := diskInode{
		layout: sh.layout, xattrs: len(sh.xattrs),
		mode: fileTypes[a.Kind].mode | a.Mode&0o7777, size: sh.size, ino: i + 1,
		uid: a.UID, gid: a.GID, mtime: n.Mtime, nsec: n.Nsec, nlink: n.Nlink,
	}
	switch {
	case sh.layout == layoutChunked:
		d.union = chunkIndexes | uint32(p.forms[i])
	case a.Kind == chunkfmt.CharDevice || a.Kind == chunkfmt.BlockDevice:
		d.union, _ = deviceNumber(n.Size) // checked by examine
	case a.Kind == chunkfmt.File && n.Count > 0: // contiguous
		x := p.m.extents(n)
		d.union = uint32(p.dataBlock() + x.next().at/blockSize) //nolint:gosec // checked by Export
	case sh.blocks > 0:
		d.union = uint32(block) //nolint:gosec // bounded by MaxBytes
	}
	d.encode(s.take(inodeSize))
	s.write(sh.xattrs)
	switch {
	case sh.layout == layoutChunked:
		s.pad(roundUp(s.pos(), chunkEntrySize))
		p.index(s, i)
	case sh.inline > 0:
		p.tail(s.take(sh.inline), i, sh.size-int64(sh.inline))
	}
	return sh.blocks
}

// index writes the places of a file's chunks.
func (p *plan) index(s *sink, i uint32) {
	size := int64(blockSize) << p.forms[i]
	x := p.m.extents(&p.t.Inodes[i])
	for e := x.next(); e.length > 0 && s.err == nil; e = x.next() {
		block, device := e.at/blockSize, uint16(0)
		switch {
		case p.m.primary:
			block += p.dataBlock()
		case e.blob != chunkfmt.Hole:
			device = p.slots[e.blob]
		}
		for off := int64(0); off < e.length; off += size {
			b := s.take(chunkEntrySize)
			if e.blob == chunkfmt.Hole {
				le.PutUint64(b, 1<<64-1)
				continue
			}
			le.PutUint16(b[2:], device)
			le.PutUint32(b[4:], uint32(block+off/blockSize)) //nolint:gosec // checked by numberDevices and Export
		}
	}
}

// tail writes what of an inode's content from off on is inline.
func (p *plan) tail(b []byte, i uint32, off int64) {
	switch p.t.Kind(i) {
	case chunkfmt.Dir:
		l := newListing(p.t, i)
		first := l.last()
		p.dirents(b, &l, first, l.len()-first)
	case chunkfmt.Symlink:
		copy(b, p.t.Target(i)[off:])
	default:
		data, _ := p.t.InlineData(i)
		copy(b, data[off:])
	}
}

// spill writes the blocks of an inode's own.
func (p *plan) spill(s *sink, i uint32) {
	blocks := p.shape(i).blocks
	switch p.t.Kind(i) {
	case chunkfmt.Dir:
		l := newListing(p.t, i)
		for at := 0; blocks > 0 && s.err == nil; blocks-- {
			n, _ := l.block(at)
			p.dirents(s.take(blockSize), &l, at, n)
			at += n
		}
	case chunkfmt.Symlink:
		copy(s.take(blockSize), p.t.Target(i))
	default:
		data, _ := p.t.InlineData(i)
		s.write(data[:min(int64(len(data)), blocks*blockSize)])
		s.pad(roundUp(s.pos(), blockSize))
	}
}
