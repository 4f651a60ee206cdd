package profile

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/damselfly-io/damselfly/internal/task"
)

// The stored form of an image's reports: the version, the number of blobs and
// their digests, the number of reports, and for each its number of accesses,
// each the number of its blob and of its group. Numbers are unsigned varints.
const version = 1

var errDamaged = errors.New("damaged profile")

func encode(reports [][]Access) []byte {
	var blobs []task.Digest
	number := map[task.Digest]uint64{}
	for _, report := range reports {
		for _, a := range report {
			if _, ok := number[a.Blob]; !ok {
				number[a.Blob] = uint64(len(blobs))
				blobs = append(blobs, a.Blob)
			}
		}
	}
	b := []byte{version}
	b = binary.AppendUvarint(b, uint64(len(blobs)))
	for _, d := range blobs {
		b = append(b, d[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(reports)))
	for _, report := range reports {
		b = binary.AppendUvarint(b, uint64(len(report)))
		for _, a := range report {
			b = binary.AppendUvarint(b, number[a.Blob])
			b = binary.AppendUvarint(b, uint64(a.Group))
		}
	}
	return b
}

// decoder reads the stored form. After an error all it reads is 0.
type decoder struct {
	rest []byte
	err  error
}

// count reads a number of at most limit.
func (d *decoder) count(limit uint64) uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 || v > limit {
		d.err, d.rest = errDamaged, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) digest() (out task.Digest) {
	if len(d.rest) < len(out) {
		d.err, d.rest = errDamaged, nil
		return out
	}
	d.rest = d.rest[copy(out[:], d.rest):]
	return out
}

func decode(b []byte) ([][]Access, error) {
	if len(b) == 0 || b[0] != version {
		return nil, fmt.Errorf("%w: unknown version", errDamaged)
	}
	d := &decoder{rest: b[1:]}
	blobs := make([]task.Digest, 0, 8)
	for n := d.count(MaxAccesses * maxReports); n > 0 && d.err == nil; n-- {
		blobs = append(blobs, d.digest())
	}
	var reports [][]Access
	for n := d.count(maxReports); n > 0 && d.err == nil; n-- {
		report := make([]Access, 0, 64)
		for k := d.count(MaxAccesses); k > 0 && d.err == nil; k-- {
			blob, group := d.count(MaxAccesses*maxReports), d.count(MaxGroup)
			if d.err == nil && blob >= uint64(len(blobs)) {
				d.err = errDamaged
			}
			if d.err == nil {
				report = append(report, Access{blobs[blob], uint32(group)}) // #nosec G115 -- at most MaxGroup
			}
		}
		reports = append(reports, report)
	}
	if d.err == nil && len(d.rest) > 0 {
		d.err = errDamaged
	}
	if d.err != nil {
		return nil, d.err
	}
	return reports, nil
}
