package erofs

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// plan says where in an image everything lies. The order is: superblock and
// device table, inodes by number with what is inline, blocks that were not
// inlined, and, of an export, the content of files.
type plan struct {
	t        *chunkfmt.Tree
	m        *chunkMap
	uuid     [16]byte
	maxBytes int64

	sets []xattrBody // as Tree.Xattrs
	// nids are the inodes' numbers on disk: their places in units of 32 bytes
	// from metaBlock on.
	nids []uint32
	// forms has the logarithm of chunk size to block size of files with
	// chunks, or contiguous.
	forms []uint8
	// spilled are the inodes with content in blocks of their own.
	spilled []uint32
	// slots has, by blob, 1 plus its place in devices; 0 if no file needs it.
	slots   []uint16
	devices []uint32

	metaEnd     int64 // where inodes end, from metaBlock on
	spillBlocks int64
	chunked     bool
	dropped     int
}

// contiguous is the form of a file that is in the image in one piece.
const contiguous = 0xff

// firstInode is where the root lies from metaBlock on: there is no inode 0, for
// readdir(3) takes an entry of that number as deleted.
const firstInode = blockSize

func newPlan(t *chunkfmt.Tree, m *chunkMap, o Options) (*plan, error) {
	p := &plan{
		t: t, m: m, maxBytes: o.maxBytes(),
		sets:    make([]xattrBody, len(t.Xattrs)),
		nids:    make([]uint32, len(t.Inodes)),
		forms:   make([]uint8, len(t.Inodes)),
		slots:   make([]uint16, len(t.Blobs)),
		metaEnd: firstInode,
	}
	copy(p.uuid[:], o.Root[:])
	for i, set := range t.Xattrs {
		p.sets[i] = encodeXattrs(set)
	}
	for i := range t.Inodes {
		if err := p.add(uint32(i)); err != nil {
			return nil, fmt.Errorf("write /%s to an EROFS image: %w", pathOf(t, uint32(i)), err)
		}
	}
	return p, p.numberDevices()
}

// add gives an inode its place.
func (p *plan) add(i uint32) error {
	if err := p.examine(i); err != nil {
		return err
	}
	s := p.shape(i)
	var start int64
	start, p.metaEnd = s.place(p.metaEnd)
	if s.blocks > 0 {
		p.spilled = append(p.spilled, i)
		p.spillBlocks += s.blocks
	}
	if p.metaEnd > p.maxBytes || p.spillBlocks*blockSize > p.maxBytes-p.metaEnd {
		return p.tooLarge()
	}
	p.nids[i] = uint32(start / inodeUnit) //nolint:gosec // maxBytes is at most MaxBytes
	p.dropped += p.sets[p.t.Attr(i).Xattrs].dropped
	return nil
}

func (p *plan) tooLarge() error {
	return fmt.Errorf("metadata of more than %d bytes: %w", p.maxBytes, ErrTooLarge)
}

// examine finds what EROFS or Linux have no room for, and the forms of files.
func (p *plan) examine(i uint32) error {
	n, a := &p.t.Inodes[i], p.t.Attr(i)
	switch a.Kind {
	case chunkfmt.Whiteout, chunkfmt.LinkOut:
		return errors.New("the tree has whiteouts or links to lower layers: it must be merged first")
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		if _, ok := deviceNumber(n.Size); !ok {
			return fmt.Errorf("device number %d:%d is too large", n.Size>>32, n.Size&(1<<32-1))
		}
	case chunkfmt.Symlink:
		if target := p.t.Target(i); target == "" || len(target) > chunkfmt.MaxPath || strings.ContainsRune(target, 0) {
			return fmt.Errorf("%.80q cannot be the target of a symbolic link", target)
		}
	case chunkfmt.File:
		if n.Count > 0 {
			if err := p.measure(i); err != nil {
				return err
			}
		}
	}
	return p.sets[a.Xattrs].err
}

// measure finds the form of a file: chunks are as large as they can be, so that
// each has one place. Extents begin at multiples of the chunk size.
func (p *plan) measure(i uint32) error {
	n := &p.t.Inodes[i]
	form := min(bits.Len64(uint64(n.Size-1)>>blockBits), maxChunkBits) //nolint:gosec // has chunks, so it is not empty
	var count int64
	var first extent
	x := p.m.extents(n)
	for e := x.next(); e.length > 0; e = x.next() {
		if count == 0 {
			first = e
		} else {
			form = min(form, bits.TrailingZeros64(uint64(e.off))-blockBits) //nolint:gosec // not negative
		}
		if count++; count*chunkEntrySize > p.maxBytes {
			return p.tooLarge()
		}
		if err := p.use(&e); err != nil {
			return err
		}
	}
	switch {
	case x.err != nil:
		return x.err
	case x.off != n.Size:
		return fmt.Errorf("chunks of %d bytes make up a file of %d", x.off, n.Size)
	}
	p.forms[i] = uint8(form) //nolint:gosec // at most maxChunkBits
	if p.m.primary && count == 1 && first.blob != chunkfmt.Hole {
		p.forms[i] = contiguous
	} else {
		p.chunked = true
	}
	return nil
}

// use marks the device that an extent needs.
func (p *plan) use(e *extent) error {
	if p.m.primary || e.blob == chunkfmt.Hole {
		return nil
	}
	p.slots[e.blob] = 1
	if b := &p.t.Blobs[e.blob]; e.at+e.length > b.DeviceSize {
		return fmt.Errorf("the content at byte %d lies beyond the %d bytes of device %s", e.off, b.DeviceSize, b.Digest)
	}
	return nil
}

// numberDevices turns the marks in slots into numbers.
func (p *plan) numberDevices() error {
	for i, used := range p.slots {
		if used == 0 {
			continue
		}
		b := &p.t.Blobs[i]
		if b.DeviceSize%blockSize != 0 || b.DeviceSize/blockSize >= maxBlocks {
			return fmt.Errorf("write an EROFS image: device %s of %d bytes cannot be addressed by 32-bit numbers of whole blocks", b.Digest, b.DeviceSize)
		}
		if len(p.devices) == maxDevices {
			return fmt.Errorf("write an EROFS image: files lie in more than %d blobs", maxDevices)
		}
		p.devices = append(p.devices, uint32(i))
		p.slots[i] = uint16(len(p.devices)) //nolint:gosec // at most maxDevices
	}
	return nil
}

// shape is what an inode needs.
type shape struct {
	layout  uint16
	size    int64
	xattrs  []byte
	inline  int   // bytes behind the extended attributes
	blocks  int64 // of its own
	entries int64 // in the chunk index
}

func (p *plan) shape(i uint32) shape {
	n, a := &p.t.Inodes[i], p.t.Attr(i)
	s := shape{xattrs: p.sets[a.Xattrs].bytes}
	switch a.Kind {
	case chunkfmt.Dir:
		l := newListing(p.t, i)
		s.flat(l.size())
	case chunkfmt.Symlink:
		s.flat(int64(len(p.t.Target(i))))
	case chunkfmt.File:
		switch form := p.forms[i]; {
		case n.Count == 0:
			s.flat(n.Size)
		case form == contiguous:
			s.size = n.Size
		default:
			s.layout, s.size = layoutChunked, n.Size
			s.entries = (n.Size-1)>>(blockBits+form) + 1
		}
	}
	return s
}

// flat is the shape of content that is written with the metadata: full blocks,
// and a last one in the inode's block if there is room.
func (s *shape) flat(size int64) {
	s.size = size
	s.blocks = size / blockSize
	last := int(size % blockSize)
	switch {
	case last == 0:
	case inodeSize+len(s.xattrs)+last <= blockSize:
		s.layout, s.inline = layoutInline, last
	default:
		s.blocks++
	}
}

// place returns where an inode begins that comes after pos, and where it ends.
// Neither the inode proper nor its inline content may lie in two blocks; to
// old kernels, a symbolic link is inline only if all of it is in one.
func (s *shape) place(pos int64) (start, end int64) {
	size := int64(inodeSize + len(s.xattrs) + s.inline)
	whole := int64(inodeSize)
	if s.inline > 0 {
		whole = size
	}
	start = roundUp(pos, inodeUnit)
	if start%blockSize+whole > blockSize {
		start = roundUp(start, blockSize)
	}
	end = start + size
	if s.entries > 0 {
		end = roundUp(end, chunkEntrySize) + s.entries*chunkEntrySize
	}
	return start, end
}

// metaBlock is the block that numbers of inodes count from.
func (p *plan) metaBlock() int64 {
	return (int64(slotFirst+len(p.devices))*slotSize+blockSize-1)/blockSize - firstInode/blockSize
}

// spillBlock is the first of the blocks behind the inodes.
func (p *plan) spillBlock() int64 {
	return p.metaBlock() + (p.metaEnd+blockSize-1)/blockSize
}

// dataBlock is the first of the blocks behind the metadata.
func (p *plan) dataBlock() int64 { return p.spillBlock() + p.spillBlocks }

// pathOf returns a path of an inode from the root, for messages.
func pathOf(t *chunkfmt.Tree, inode uint32) string {
	var names []string
	for inode != 0 && len(names) <= chunkfmt.MaxPath/2 {
		parent := t.Inodes[inode].Parent
		for _, e := range t.Children(parent) {
			if e.Inode == inode {
				names = append(names, e.Name)
				break
			}
		}
		inode = parent
	}
	var path strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		path.WriteString(names[i])
		if i > 0 {
			path.WriteByte('/')
		}
	}
	return path.String()
}
