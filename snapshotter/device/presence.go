package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/internal/task"
	"golang.org/x/sys/unix"
)

// The file present begins with two slots of which each says:
//
//	 0  magic
//	 8  key of the device
//	40  inode of the data file
//	48  time of its birth in nanoseconds, as inodes are used again
//	56  sequence number: the higher one counts
//	64  number of groups
//	72  the set of groups that are there
//	    SHA-256 of all that
//
// Numbers are little-endian. Slots are multiples of slotAlign; behind them is a
// SHA-256 for each group.
const (
	presentMagic = "DFPRES\x00\x01"
	slotHeader   = 72
	slotAlign    = 4096
	sumSize      = len(chunkfmt.Digest{})
)

// identity tells a file from one that took its place.
type identity struct {
	inode, birth uint64
}

func identityOf(f *os.File) (identity, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return identity{}, fmt.Errorf("statx %s: %w", f.Name(), err)
	}
	id := identity{inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.birth = uint64(st.Btime.Sec)*1e9 + uint64(st.Btime.Nsec) // #nosec G115 -- only compared
	}
	return id, nil
}

// presence is a device's file present. It is not safe for concurrent use.
type presence struct {
	path   string
	key    Key
	file   identity
	groups int
	step   func(op, path string) error // Options.step
	// seq is the sequence number that was written last.
	seq uint64
	// durable are the groups that a slot may have.
	durable task.Set
}

func (p *presence) slotSize() int64 {
	n := int64(slotHeader + 8*((p.groups+63)/64) + sumSize)
	return (n + slotAlign - 1) / slotAlign * slotAlign
}

func (p *presence) sumOffset(group int) int64 { return 2*p.slotSize() + int64(group*sumSize) }

// encode returns a slot.
func (p *presence) encode() []byte {
	slot := make([]byte, 0, p.slotSize())
	slot = append(slot, presentMagic...)
	slot = append(slot, p.key[:]...)
	slot = binary.LittleEndian.AppendUint64(slot, p.file.inode)
	slot = binary.LittleEndian.AppendUint64(slot, p.file.birth)
	slot = binary.LittleEndian.AppendUint64(slot, p.seq)
	slot = binary.LittleEndian.AppendUint64(slot, uint64(p.groups)) // #nosec G115 -- a length
	slot = append(slot, p.durable.Bytes()...)
	sum := chunkfmt.Sum(slot)
	return append(slot, sum[:]...)
}

// decode takes over what a slot says, unless it is invalid, of another device or
// older than what is known.
func (p *presence) decode(slot []byte) {
	n := slotHeader + 8*((p.groups+63)/64)
	if len(slot) < n+sumSize || chunkfmt.Sum(slot[:n]) != chunkfmt.Digest(slot[n:n+sumSize]) {
		return
	}
	number := func(at int) uint64 { return binary.LittleEndian.Uint64(slot[at:]) }
	if string(slot[:8]) != presentMagic || !bytes.Equal(slot[8:40], p.key[:]) ||
		(identity{number(40), number(48)}) != p.file || number(64) != uint64(p.groups) || number(56) <= p.seq { // #nosec G115 -- a length
		return
	}
	set, err := task.ParseSet(slot[slotHeader:n], p.groups)
	if err != nil {
		return
	}
	p.seq, p.durable = number(56), set
}

// load reads the file. One that is absent or damaged says that no group is
// there; only a failure to read is an error. It reports whether there is a file.
func (p *presence) load() (bool, error) {
	p.seq, p.durable = 0, task.NewSet(p.groups)
	f, err := os.Open(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // only read
	slots := make([]byte, 2*p.slotSize())
	n, err := f.ReadAt(slots, 0)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EIO) {
		return false, fmt.Errorf("read %s: %w", p.path, err)
	}
	slots = slots[:n]
	p.decode(slots[:min(int64(n), p.slotSize())])
	p.decode(slots[min(int64(n), p.slotSize()):])
	return true, nil
}

// written is a group whose bytes are in the data file.
type written struct {
	group int
	bytes int64
	sum   chunkfmt.Digest
}

// open opens the file for writing.
func (p *presence) open() (*os.File, error) {
	return os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o600)
}

// add records groups. Their bytes must be durable.
func (p *presence) add(groups []written) error {
	f, err := p.open()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // synced
	for _, w := range groups {
		if _, err := f.WriteAt(w.sum[:], p.sumOffset(w.group)); err != nil {
			return err
		}
	}
	for _, w := range groups {
		p.durable.Add(w.group)
	}
	return p.commit(f)
}

// remove forgets groups. When it fails they may still be recorded.
func (p *presence) remove(groups []int) error {
	left := p.durable.Clone()
	for _, g := range groups {
		left.Remove(g)
	}
	if left.Len() == p.durable.Len() {
		return nil
	}
	f, err := p.open()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // synced
	was := p.durable
	p.durable = left
	for range 2 { // both slots
		if err := p.commit(f); err != nil {
			p.durable = was
			return err
		}
	}
	return nil
}

// commit writes a slot over the older one.
func (p *presence) commit(f *os.File) error {
	if err := p.step("record", p.path); err != nil {
		return err
	}
	p.seq++
	if _, err := f.WriteAt(p.encode(), int64(p.seq%2)*p.slotSize()); err != nil { // #nosec G115 -- 0 or 1
		return err
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", p.path, err)
	}
	return p.step("recorded", p.path)
}

// sum returns the digest that was recorded for a group.
func (p *presence) sum(f *os.File, group int) (d chunkfmt.Digest, err error) {
	_, err = f.ReadAt(d[:], p.sumOffset(group))
	if errors.Is(err, io.EOF) {
		return chunkfmt.Digest{}, nil
	}
	return d, err
}
