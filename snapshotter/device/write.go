package device

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// sumParts returns the digest of the bytes of a group that are written.
func sumParts(parts []chunkfmt.Segment, plain []byte) (d chunkfmt.Digest) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(plain[p.Offset : p.Offset+p.Length])
	}
	h.Sum(d[:0])
	return d
}

// maxGather bounds what is copied together for one write.
const maxGather = 1 << 20

// gathered are buffers of maxGather bytes.
var gathered = sync.Pool{New: func() any { return new([maxGather]byte) }}

// putWithRoom is put that evicts other devices if there is no space.
func (d *Device) putWithRoom(parts []chunkfmt.Segment, plain []byte) error {
	evictions := d.s.evictions.Load()
	full := d.put(parts, plain)
	if !isFull(full) {
		return full
	}
	if room, err := d.s.makeRoom(evictions); !room {
		return fmt.Errorf("%w: %w", ErrFull, errors.Join(full, err))
	}
	err := d.put(parts, plain)
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// put writes the parts of a group. Parts with less than a block between them, as
// small files have, are written as one: what lies between is nobody's, and zero.
func (d *Device) put(parts []chunkfmt.Segment, plain []byte) error {
	return d.withWriter(func(f *os.File) error {
		if err := d.s.o.step("write", f.Name()); err != nil {
			return err
		}
		for len(parts) > 0 {
			n := near(parts)
			if err := putNear(f, parts[:n], plain); err != nil {
				return err
			}
			parts = parts[n:]
		}
		return nil
	})
}

// near returns how many of the first parts are written as one.
func near(parts []chunkfmt.Segment) int {
	n := 1
	for ; n < len(parts); n++ {
		last, next := &parts[n-1], &parts[n]
		if next.Device-last.Device-int64(last.Length) >= chunkfmt.BlockSize ||
			next.Device+int64(next.Length)-parts[0].Device > maxGather {
			break
		}
	}
	return n
}

func putNear(f *os.File, parts []chunkfmt.Segment, plain []byte) error {
	first := parts[0].Device
	if len(parts) == 1 {
		_, err := f.WriteAt(plain[parts[0].Offset:parts[0].Offset+parts[0].Length], first)
		return err
	}
	room, ok := gathered.Get().(*[maxGather]byte)
	if !ok {
		return fmt.Errorf("no buffer")
	}
	defer gathered.Put(room)
	end := 0
	for _, p := range parts {
		at := int(p.Device - first)
		clear(room[end:at])
		end = at + copy(room[at:], plain[p.Offset:p.Offset+p.Length])
	}
	_, err := f.WriteAt(room[:end], first)
	return err
}
