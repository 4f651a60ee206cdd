package lazymount

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// maxReads bounds what a Recorder notes: what a trace may have.
const maxReads = 1 << 20

// read is a range of a device that was read.
type read struct {
	key    device.Key
	off, n int64
}

// Recorder notes what is read of a mount, in order, each range once. Content
// that is in the index itself is not fetched, and not noted.
type Recorder struct {
	mu    sync.Mutex
	seen  map[read]bool
	order []read
}

// filler returns a backend.Filler that has reads noted and filled by next.
func (r *Recorder) filler(next backend.Filler) backend.Filler { return recording{r, next} }

type recording struct {
	r    *Recorder
	next backend.Filler
}

// Fill implements backend.Filler.
func (x recording) Fill(ctx context.Context, d *device.Device, off, n int64) error {
	x.r.note(read{d.Key(), off, n})
	return x.next.Fill(ctx, d, off, n)
}

func (r *Recorder) note(x read) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[read]bool{}
	}
	if r.seen[x] || len(r.order) == maxReads {
		return
	}
	r.seen[x] = true
	r.order = append(r.order, x)
}

// Accesses returns what was read of a tree, which is that of the mount.
func (r *Recorder) Accesses(t *chunkfmt.Tree) []build.Access {
	r.mu.Lock()
	order := slices.Clone(r.order)
	r.mu.Unlock()
	p := newPlaces(t)
	var l accessList
	for _, x := range order {
		for _, s := range p.within(x.key, x.off, x.n) {
			from, to := max(x.off, s.at), min(x.off+x.n, s.at+s.length)
			l.add(p.path(s.inode), s.off+from-s.at, to-from)
		}
	}
	return l.all
}

// Group names a group of a blob.
type Group struct {
	Blob  chunkfmt.Digest
	Group int
}

// AccessesOf returns the content of groups, in their order, as accesses to the
// files that it is in. Groups that the tree does not have are left out.
func AccessesOf(t *chunkfmt.Tree, groups []Group) []build.Access {
	type piece struct {
		inode  uint32
		off, n int64
		at     uint32
	}
	pieces := map[Group][]piece{}
	names := namesOf(t)
	for inode := range names {
		last := (*chunkfmt.Chunk)(nil)
		for off, c := range t.Content(inode) {
			if c != last && c.Blob != chunkfmt.Hole {
				g := Group{t.Blobs[c.Blob].Digest, int(c.Group)}
				pieces[g] = append(pieces[g], piece{inode, off, int64(c.Length), c.Offset})
			}
			last = c
		}
	}
	var l accessList
	for _, g := range groups {
		in := pieces[g]
		delete(pieces, g) // a second time tells nothing new
		slices.SortFunc(in, func(a, b piece) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.inode, b.inode), cmp.Compare(a.off, b.off))
		})
		for i, x := range in {
			if i > 0 && in[i-1].at == x.at {
				continue // the same chunk in another file
			}
			l.add(names[x.inode], x.off, x.n)
		}
	}
	return l.all
}

// WriteTrace writes accesses as dfctl image convert --trace reads them.
func WriteTrace(w io.Writer, accesses []build.Access) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for i := range accesses {
		if err := enc.Encode(&accesses[i]); err != nil {
			return err
		}
	}
	return nil
}

// accessList joins accesses that go on where the one before ended.
type accessList struct{ all []build.Access }

func (l *accessList) add(path string, off, n int64) {
	if len(l.all) > 0 {
		last := &l.all[len(l.all)-1]
		if last.Path == path && last.Offset+last.Length == off {
			last.Length += n
			return
		}
	}
	l.all = append(l.all, build.Access{Path: path, Offset: off, Length: n})
}

// span is a part of a device and the file that it is of.
type span struct {
	at, length int64
	inode      uint32
	off        int64 // in the file
}

// places tells which files the parts of devices are of.
type places struct {
	names map[uint32]string
	spans map[device.Key][]span // in the order of the device, without overlaps
}

func newPlaces(t *chunkfmt.Tree) *places {
	p := &places{names: namesOf(t), spans: map[device.Key][]span{}}
	keys := make([]device.Key, len(t.Blobs))
	for i := range keys {
		keys[i] = t.DeviceKey(uint32(i)) // #nosec G115 -- at most 64 Ki
	}
	for inode := range p.names {
		last := (*chunkfmt.Chunk)(nil)
		for off, c := range t.Content(inode) {
			if c == last {
				continue // the same again and again
			}
			last = c
			if at, ok := t.DeviceOffset(c); ok {
				key := keys[c.Blob]
				p.spans[key] = append(p.spans[key], span{at, int64(c.Length), inode, off})
			}
		}
	}
	for key, s := range p.spans {
		slices.SortFunc(s, func(a, b span) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.inode, b.inode), cmp.Compare(a.off, b.off))
		})
		// Of files that share a chunk, the first stands for all: a trace is about
		// content.
		p.spans[key] = slices.CompactFunc(s, func(a, b span) bool { return a.at == b.at })
	}
	return p
}

// namesOf returns a path of each regular file.
func namesOf(t *chunkfmt.Tree) map[uint32]string {
	names := map[uint32]string{}
	for path, inode := range t.Walk() {
		if _, ok := names[inode]; !ok && t.Kind(inode) == chunkfmt.File {
			names[inode] = "/" + path
		}
	}
	return names
}

func (p *places) path(inode uint32) string { return p.names[inode] }

// within returns what lies in n bytes of a device.
func (p *places) within(key device.Key, off, n int64) []span {
	all := p.spans[key]
	first, _ := slices.BinarySearchFunc(all, off, func(s span, off int64) int {
		return cmp.Compare(s.at+s.length, off+1)
	})
	last := first
	for last < len(all) && all[last].at < off+n {
		last++
	}
	return all[first:last]
}
