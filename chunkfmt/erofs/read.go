package erofs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Device is what an image says about one of its devices.
type Device struct {
	// Digest is that of the blob.
	Digest chunkfmt.Digest
	// Size in bytes.
	Size int64
}

// Devices reads from an image of Write which devices it needs, in the order in
// which the kernel must be given them. Whoever mounts an image again after a
// restart needs nothing else.
//
// It reads the first block and the device table, and reports an image with
// another checksum, or one that Write did not make.
func Devices(image io.ReaderAt) ([]Device, error) {
	b := make([]byte, blockSize)
	if err := readFull(image, b, 0); err != nil {
		return nil, fmt.Errorf("read the superblock of an EROFS image: %w", err)
	}
	super := b[superOffset:]
	want := le.Uint32(super[4:])
	le.PutUint32(super[4:], 0)
	switch {
	case le.Uint32(super) != superMagic:
		return nil, errors.New("read an EROFS image: it is none")
	case checksum(b) != want:
		return nil, errors.New("read an EROFS image: its superblock is damaged")
	}
	count := int(le.Uint16(super[86:]))
	if count == 0 {
		return nil, nil
	}
	if first := le.Uint16(super[88:]); first != slotFirst {
		return nil, fmt.Errorf("read an EROFS image: its device table begins in slot %d, want %d", first, slotFirst)
	}
	table := make([]byte, count*slotSize)
	if err := readFull(image, table, slotFirst*slotSize); err != nil {
		return nil, fmt.Errorf("read the device table of an EROFS image: %w", err)
	}
	devices := make([]Device, count)
	for i := range devices {
		if err := devices[i].decode(table[i*slotSize:]); err != nil {
			return nil, fmt.Errorf("read device %d of an EROFS image: %w", i+1, err)
		}
	}
	return devices, nil
}

func (d *Device) decode(slot []byte) error {
	if _, err := hex.Decode(d.Digest[:], slot[:64]); err != nil {
		return fmt.Errorf("its tag %q is no digest: %w", slot[:64], err)
	}
	d.Size = int64(le.Uint32(slot[64:])) * blockSize
	return nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
