package device

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sys/unix"
)

// Verify reads the present groups of a device from the disk and compares them
// with the digests that were taken of what was written. Groups that differ or
// cannot be read are dropped and returned; OnLost is told of them if the device
// is referenced by others. progress, which may be nil, is called after each
// group with how many of all groups are done. Verify fails with ErrNotRecovered
// before Recovered was called.
func (s *Store) Verify(ctx context.Context, key Key, progress func(done, total int)) (bad []int, err error) {
	if !s.recovered.Load() {
		return nil, fmt.Errorf("verify device %s: %w", key, ErrNotRecovered)
	}
	d, err := s.Load(key)
	if err != nil {
		return nil, err
	}
	defer d.Release()
	bad, err = d.verify(ctx, progress)
	if len(bad) > 0 {
		err = errors.Join(err, d.Drop(bad))
		if s.o.OnLost != nil && d.e.refs.Load() > 1 {
			s.o.OnLost(d, bad)
		}
	}
	if err != nil {
		return bad, fmt.Errorf("verify device %s: %w", key, err)
	}
	return bad, nil
}

func (d *Device) verify(ctx context.Context, progress func(done, total int)) (bad []int, err error) {
	if err := d.sync(); err != nil {
		return nil, err
	}
	total := len(d.table.Blob.Groups)
	buf := make([]byte, 256<<10)
	for g := range total {
		if err := ctx.Err(); err != nil {
			return bad, err
		}
		ok, err := d.verifyGroup(g, buf)
		if err != nil {
			return bad, err
		}
		if !ok {
			bad = append(bad, g)
		}
		if progress != nil {
			progress(g+1, total)
		}
	}
	return bad, nil
}

// verifyGroup reports that a group is what was written, if it is recorded.
func (d *Device) verifyGroup(g int, buf []byte) (bool, error) {
	want, recorded, err := d.recorded(g)
	if err != nil || !recorded {
		return true, err
	}
	got, err := d.sumOnDisk(g, buf)
	switch {
	case errors.Is(err, unix.EIO), errors.Is(err, io.EOF):
		return false, nil
	case err != nil:
		return false, err
	}
	return got == want, nil
}

// recorded returns the digest in the ledger of a group that is present.
func (d *Device) recorded(g int) (sum chunkfmt.Digest, ok bool, err error) {
	d.syncMu.Lock()
	defer d.syncMu.Unlock()
	if !d.Has(g) || !d.ledger.durable.Has(g) {
		return sum, false, nil
	}
	f, err := os.Open(d.ledger.path)
	if errors.Is(err, fs.ErrNotExist) { // somebody removed it: nothing is proven
		return sum, true, nil
	}
	if err != nil {
		return sum, false, err
	}
	defer f.Close() //nolint:errcheck // only read
	sum, err = d.ledger.sum(f, g)
	return sum, true, err
}

// sumOnDisk reads a group past what the kernel keeps of it in memory.
func (d *Device) sumOnDisk(g int, buf []byte) (sum chunkfmt.Digest, err error) {
	h := sha256.New()
	for _, p := range d.table.parts(g) {
		err := d.withWriter(func(f *os.File) error {
			return unix.Fadvise(int(f.Fd()), p.Device, int64(p.Length), unix.FADV_DONTNEED)
		})
		if err != nil {
			return sum, err
		}
		for off, left := p.Device, int64(p.Length); left > 0; {
			n, err := d.ReadAt(buf[:min(left, int64(len(buf)))], off)
			h.Write(buf[:n])
			off, left = off+int64(n), left-int64(n)
			if err != nil && left > 0 {
				return sum, err
			}
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}
