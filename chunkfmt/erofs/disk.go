package erofs

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Numbers of the on-disk format, from erofs_fs.h of erofs-utils and
// https://docs.kernel.org/filesystems/erofs.html.
const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	compatChecksum  = 0x1
	compatMtime     = 0x2
	incompatChunked = 0x4
	incompatDevices = 0x8

	// Slots of the device table are found by number from the start of the
	// image; the first that the superblock leaves free is the ninth.
	slotSize  = 128
	slotFirst = (superOffset + superSize) / slotSize
	// slotsInFirstBlock are covered by the checksum.
	slotsInFirstBlock = blockSize/slotSize - slotFirst
	maxDevices        = 1<<16 - 1

	// An inode's number is its place in units of 32 bytes.
	inodeUnit = 32
	inodeSize = 64 // extended

	inodeExtended = 1
	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4

	chunkIndexes   = 0x20
	chunkEntrySize = 8
	// maxChunkBits keeps chunks at 1 GiB, which kernels with 32-bit longs can
	// shift by.
	maxChunkBits = 30 - blockBits

	direntSize = 12

	xattrHeaderSize = 12
	xattrEntrySize  = 4
)

var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns that of a superblock whose checksum field is zero; it is of
// the rest of the first block. EROFS leaves out CRC32C's final inversion.
func checksum(firstBlock []byte) uint32 {
	return ^crc32.Checksum(firstBlock[superOffset:], castagnoli)
}

// superblock is what of the superblock differs between images.
type superblock struct {
	incompat  uint32
	rootNID   uint16
	inodes    uint64
	blocks    uint32
	metaBlock uint32
	uuid      [16]byte
	devices   uint16
}

func (s *superblock) encode(b []byte) {
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], s.rootNID)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[40:], s.metaBlock)
	copy(b[48:64], s.uuid[:])
	le.PutUint32(b[80:], s.incompat)
	if s.devices > 0 {
		le.PutUint16(b[86:], s.devices)
		le.PutUint16(b[88:], slotFirst)
	}
}

// diskInode is an extended inode.
type diskInode struct {
	layout uint16
	xattrs int // bytes of the body
	mode   uint16
	size   int64
	union  uint32 // first block, chunk format or device number
	ino    uint32
	uid    uint32
	gid    uint32
	mtime  int64
	nsec   uint32
	nlink  uint32
}

func (i *diskInode) encode(b []byte) {
	le.PutUint16(b[0:], inodeExtended|i.layout<<1)
	le.PutUint16(b[2:], xattrCount(i.xattrs))
	le.PutUint16(b[4:], i.mode)
	le.PutUint64(b[8:], uint64(i.size)) //nolint:gosec // sizes are not negative
	le.PutUint32(b[16:], i.union)
	le.PutUint32(b[20:], i.ino)
	le.PutUint32(b[24:], i.uid)
	le.PutUint32(b[28:], i.gid)
	le.PutUint64(b[32:], uint64(i.mtime)) //nolint:gosec // two's complement, as the kernel reads it
	le.PutUint32(b[40:], i.nsec)
	le.PutUint32(b[44:], i.nlink)
}

// fileTypes has the type bits of modes and those of directory entries.
var fileTypes = [...]struct {
	mode   uint16
	dirent uint8
}{
	chunkfmt.Dir:         {0o040000, 2},
	chunkfmt.File:        {0o100000, 1},
	chunkfmt.Symlink:     {0o120000, 7},
	chunkfmt.CharDevice:  {0o020000, 3},
	chunkfmt.BlockDevice: {0o060000, 4},
	chunkfmt.Fifo:        {0o010000, 5},
	chunkfmt.Socket:      {0o140000, 6},
}

// deviceNumber encodes a device's number, major<<32 | minor, as the kernel's
// new_encode_dev does, and returns false if it has no room.
func deviceNumber(n int64) (uint32, bool) {
	const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1
	major, minor := n>>32, n&(1<<32-1)
	if major < 0 || major > maxMajor || minor > maxMinor {
		return 0, false
	}
	return uint32(minor&0xff | major<<8 | (minor&^0xff)<<12), true //nolint:gosec // 32 bits by the check above
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
