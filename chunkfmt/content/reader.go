package content

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"sort"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Source gives the stored bytes of blobs.
type Source interface {
	// ReadAt fills p with the bytes of a blob from off on. Fewer bytes are an
	// error. It may be called by several goroutines.
	ReadAt(ctx context.Context, blob *chunkfmt.Blob, p []byte, off int64) error
}

// Options of a Reader.
type Options struct {
	// CacheBytes bounds the decoded groups that are kept. Those that readers
	// are waiting for or using come on top. Default 64 MiB; negative keeps
	// none.
	CacheBytes int64
}

// Reader reads the files of a tree. Its methods may be called by several
// goroutines.
type Reader struct {
	tree  *chunkfmt.Tree
	src   Source
	cache *cache
}

// NewReader returns a reader of a tree whose blobs src has.
func NewReader(t *chunkfmt.Tree, src Source, o Options) *Reader {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	return &Reader{tree: t, src: src, cache: newCache(o.CacheBytes)}
}

// Group returns the decoded and verified bytes of a group, which the caller
// must not change. Readers that ask for the same one at the same time share
// one fetch.
func (r *Reader) Group(ctx context.Context, ref chunkfmt.GroupRef) ([]byte, error) {
	return r.cache.get(ctx, ref, func() ([]byte, error) { return r.load(ctx, ref) })
}

func (r *Reader) load(ctx context.Context, ref chunkfmt.GroupRef) ([]byte, error) {
	if err := checkRef(r.tree, ref); err != nil {
		return nil, err
	}
	blob := &r.tree.Blobs[ref.Blob]
	g := &blob.Groups[ref.Group]
	stored := make([]byte, g.Stored)
	plain, err := loadGroup(ctx, r.tree, r.src, ref, stored, nil)
	if err != nil {
		return nil, describe(blob, ref, err)
	}
	if cap(plain) > 2*len(plain) {
		plain = bytes.Clone(plain) // what decoding needed beyond it would be kept, too
	}
	return plain, nil
}

// loadGroup fetches, decodes and verifies a group with the buffers of its
// caller; stored has the group's length.
func loadGroup(ctx context.Context, t *chunkfmt.Tree, src Source, ref chunkfmt.GroupRef, stored, dst []byte) ([]byte, error) {
	blob, g := &t.Blobs[ref.Blob], t.Group(ref)
	if err := src.ReadAt(ctx, blob, stored, g.Offset); err != nil {
		return nil, err
	}
	plain, err := decode(g, !blob.Unproven, stored, dst)
	if err != nil || !blob.Unproven {
		return plain, err
	}
	return plain, VerifyChunks(t, ref, plain)
}

// describe says which group an error is about.
func describe(blob *chunkfmt.Blob, ref chunkfmt.GroupRef, err error) error {
	return fmt.Errorf("blob %s, group %d (%d bytes at %d): %w", blob.Digest, ref.Group,
		blob.Groups[ref.Group].Stored, blob.Groups[ref.Group].Offset, err)
}

// checkRef refuses what a tree does not define: a single layer's tree has no
// groups for blobs of the layers below.
func checkRef(t *chunkfmt.Tree, ref chunkfmt.GroupRef) error {
	if int64(ref.Blob) >= int64(len(t.Blobs)) {
		return fmt.Errorf("%w: blob %d of %d", chunkfmt.ErrInvalid, ref.Blob, len(t.Blobs))
	}
	if blob := &t.Blobs[ref.Blob]; int64(ref.Group) >= int64(len(blob.Groups)) {
		return fmt.Errorf("%w: blob %s: group %d of %d", chunkfmt.ErrInvalid, blob.Digest, ref.Group, len(blob.Groups))
	}
	return nil
}

// chunksOf returns the places of the first chunk in a group, and after the
// last: chunks are sorted.
func chunksOf(t *chunkfmt.Tree, ref chunkfmt.GroupRef) (int, int) {
	// Holes are first, though their blob is the highest number.
	after := func(c *chunkfmt.Chunk, blob, group uint32) bool {
		return c.Blob != chunkfmt.Hole && (c.Blob > blob || c.Blob == blob && c.Group >= group)
	}
	first := sort.Search(len(t.Chunks), func(i int) bool { return after(&t.Chunks[i], ref.Blob, ref.Group) })
	n := sort.Search(len(t.Chunks)-first, func(i int) bool { return after(&t.Chunks[first+i], ref.Blob, ref.Group+1) })
	return first, first + n
}

// ReadAt reads from a File like io.ReaderAt: fewer bytes than len(p) come with
// an error, which is io.EOF at the end of the file. Its time grows with the
// number of chunks before off; Open is for reading from the beginning to the
// end.
func (r *Reader) ReadAt(ctx context.Context, inode uint32, p []byte, off int64) (int, error) {
	f, err := r.Open(ctx, inode)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("reading at negative offset %d", off)
	}
	f.skip(off)
	n, err := io.ReadFull(f, p)
	if err == io.ErrUnexpectedEOF { //nolint:errorlint // the bare one: the file ended, nothing failed
		err = io.EOF
	}
	return n, err
}

// Open returns the content of a File, to be read with ctx.
func (r *Reader) Open(ctx context.Context, inode uint32) (*File, error) {
	if int64(inode) >= int64(len(r.tree.Inodes)) || r.tree.Kind(inode) != chunkfmt.File {
		return nil, fmt.Errorf("inode %d is no file", inode)
	}
	f := &File{ctx: ctx, r: r, inode: inode}
	if inline, ok := r.tree.InlineData(inode); ok {
		f.left = inline
		return f, nil
	}
	n := &r.tree.Inodes[inode]
	f.runs = r.tree.Runs[n.First : n.First+n.Count]
	return f, nil
}

// File reads one file from the beginning to the end. It needs no Close.
type File struct {
	ctx   context.Context // io.Reader leaves no other way
	r     *Reader
	inode uint32
	// runs is what follows, of the first one from done on.
	runs []chunkfmt.Run
	done uint32
	// offset is how much of the next chunk to leave out.
	offset int64
	// zeros is how many zeros come next, and left what comes after them.
	zeros int64
	left  []byte
}

// Read implements io.Reader. It reads at most to the end of a chunk.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for f.zeros == 0 && len(f.left) == 0 {
		c := f.next()
		if c == nil {
			return 0, io.EOF
		}
		if err := f.enter(c); err != nil {
			return 0, fmt.Errorf("%s: %w", pathOf(f.r.tree, f.inode), err)
		}
	}
	if f.zeros > 0 {
		n := min(int64(len(p)), f.zeros)
		clear(p[:n])
		f.zeros -= n
		return int(n), nil
	}
	n := copy(p, f.left)
	f.left = f.left[n:]
	return n, nil
}

// next returns the next chunk, and nil after the last.
func (f *File) next() *chunkfmt.Chunk {
	if len(f.runs) == 0 {
		return nil
	}
	run := f.runs[0]
	at := run.Chunk
	if !run.Repeat {
		at += f.done
	}
	if f.done++; f.done == run.Count {
		f.runs, f.done = f.runs[1:], 0
	}
	return &f.r.tree.Chunks[at]
}

func (f *File) enter(c *chunkfmt.Chunk) error {
	offset := f.offset
	if c.Blob == chunkfmt.Hole {
		f.zeros, f.offset = int64(c.Length)-offset, 0
		return nil
	}
	plain, err := f.r.Group(f.ctx, chunkfmt.GroupRef{Blob: c.Blob, Group: c.Group})
	if err != nil {
		return err
	}
	p, err := slice(c, plain)
	if err != nil {
		return err
	}
	f.left, f.offset = p[offset:], 0
	return nil
}

// skip moves a File that was not read yet forward, without fetching anything.
func (f *File) skip(n int64) {
	f.left = f.left[min(n, int64(len(f.left))):]
	for len(f.runs) > 0 {
		run := f.runs[0]
		count, length := uint32(0), int64(0)
		if run.Repeat {
			length = int64(f.r.tree.Chunks[run.Chunk].Length)
			count = uint32(min(n/length, int64(run.Count))) //nolint:gosec // G115: at most Count
			n -= int64(count) * length
		}
		for count < run.Count && !run.Repeat {
			if length = int64(f.r.tree.Chunks[run.Chunk+count].Length); n < length {
				break
			}
			n -= length
			count++
		}
		if count < run.Count {
			f.done, f.offset = count, n
			return
		}
		f.runs = f.runs[1:]
	}
}

// pathOf returns a path of an inode: that of its first entry.
func pathOf(t *chunkfmt.Tree, inode uint32) string {
	var p string
	for inode != 0 {
		parent := t.Inodes[inode].Parent
		for _, e := range t.Children(parent) {
			if e.Inode == inode {
				p = path.Join(e.Name, p)
				break
			}
		}
		inode = parent
	}
	return p
}
