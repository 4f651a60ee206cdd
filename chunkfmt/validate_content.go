package chunkfmt

import "sort"

// contents checks the content of files, in the order of their inodes.
type contents struct {
	*validator
	runs   int   // seen so far
	inline int64 // bytes seen so far
}

func (k *contents) check(n *Inode) error {
	switch {
	case n.Count > 0:
		return k.checkRuns(n)
	case n.Size == 0:
		if n.First != 0 {
			return invalid("an empty file has content at %d", n.First)
		}
		return nil
	case int64(n.First) != k.inline || n.Size > int64(len(k.Inline))-k.inline:
		return invalid("inline content %d+%d of %d, not from %d on", n.First, n.Size, len(k.Inline), k.inline)
	}
	k.inline += n.Size
	return nil
}

func (k *contents) checkRuns(n *Inode) error {
	if int64(n.First) != int64(k.runs) || int64(n.Count) > int64(len(k.Runs)-k.runs) {
		return invalid("runs %d+%d of %d, not from %d on", n.First, n.Count, len(k.Runs), k.runs)
	}
	runs := k.Runs[k.runs : k.runs+int(n.Count)]
	k.runs += len(runs)
	f := mapping{contents: k}
	for i := range runs {
		if i > 0 && joins(&runs[i-1], &runs[i]) {
			return invalid("run %d goes on with the run before it", i)
		}
		if err := f.run(&runs[i]); err != nil {
			return err
		}
	}
	if f.offset != n.Size {
		return invalid("size %d, but chunks of %d bytes", n.Size, f.offset)
	}
	return nil
}

// joins reports that the first chunk of b could have been in the run a.
func joins(a, b *Run) bool {
	if a.Repeat || a.Count == 1 && a.Chunk == b.Chunk {
		return a.Chunk == b.Chunk
	}
	return a.next() == b.Chunk
}

// mapping follows the content of one file through the devices. Every page of
// the file must lie in one page of a device, so that the page can be mapped.
type mapping struct {
	*contents
	offset int64 // in the file
	// page says what the last page of the file so far lies in.
	page pageKind
	// blob is that of an external or a data page; base is, of a data page, how
	// far the place in the device is from the place in the file.
	blob uint32
	base int64
}

type pageKind uint8

const (
	holePage pageKind = iota // so far
	externalPage
	dataPage
)

func (f *mapping) run(r *Run) error {
	last := int64(r.Chunk)
	if !r.Repeat {
		last += int64(r.Count) - 1
	}
	if r.Count == 0 || r.Repeat && r.Count == 1 || last >= int64(len(f.Chunks)) {
		return invalid("a run of %d chunks from %d on, of %d", r.Count, r.Chunk, len(f.Chunks))
	}
	switch {
	case r.Repeat && f.Chunks[r.Chunk].Blob == Hole:
		f.used[r.Chunk] = true
		return f.hole(int64(r.Count) * int64(f.Chunks[r.Chunk].Length))
	case r.Repeat:
		// What holds for the first two holds for the others.
		for range 2 {
			if err := f.chunk(r.Chunk); err != nil {
				return err
			}
		}
		return f.advance(int64(r.Count-2) * int64(f.Chunks[r.Chunk].Length))
	}
	for i := r.Chunk; i-r.Chunk < r.Count; i++ {
		if err := f.chunk(i); err != nil {
			return err
		}
	}
	return nil
}

func (f *mapping) chunk(i uint32) error {
	f.used[i] = true
	c := &f.Chunks[i]
	if c.Blob == Hole {
		return f.hole(int64(c.Length))
	}
	page, base := dataPage, f.devices[i]-f.offset
	if f.devices[i] == nowhere {
		page, base = externalPage, 0
	}
	if base%BlockSize != 0 || !f.fits(page, c.Blob, base) {
		return invalid("at byte %d the chunk at %d of group %d of blob %d is where no page can be mapped",
			f.offset, c.Offset, c.Group, c.Blob)
	}
	f.page, f.blob, f.base = page, c.Blob, base
	return f.advance(int64(c.Length))
}

// fits reports that what comes next can be in one page with what the page at
// f.offset has already.
func (f *mapping) fits(page pageKind, blob uint32, base int64) bool {
	begin := f.offset &^ (BlockSize - 1)
	switch {
	case begin == f.offset:
		return true
	case f.page != holePage:
		return f.page == page && f.blob == blob && f.base == base
	case page == dataPage:
		return f.free(blob, begin+base, f.offset+base)
	}
	return true // what an external blob has in its device is not known
}

// hole goes over n zeros. Those in the page of data are mapped with it.
func (f *mapping) hole(n int64) error {
	end := min(f.offset+n, alignUp(f.offset))
	if f.page == dataPage && f.offset < end && !f.free(f.blob, f.offset+f.base, end+f.base) {
		return invalid("at byte %d a hole is mapped to where other content is", f.offset)
	}
	if last := (f.offset + n) &^ (BlockSize - 1); last >= f.offset {
		f.page = holePage
	}
	return f.advance(n)
}

// span is a part of a device that has content.
type span struct{ begin, end int64 }

// free reports that nothing lies in a part of a blob's device.
func (v *validator) free(blob uint32, begin, end int64) bool {
	spans, ok := v.spans[blob]
	if !ok {
		for i := range v.Blobs[blob].Groups {
			g := &v.Blobs[blob].Groups[i]
			if g.linear() {
				spans = append(spans, span{g.Device, g.Device + int64(g.Plain)})
			}
			for _, s := range g.Segments {
				spans = append(spans, span{s.Device, s.Device + int64(s.Length)})
			}
		}
		v.spans[blob] = spans
	}
	i := sort.Search(len(spans), func(i int) bool { return spans[i].end > begin })
	return i == len(spans) || spans[i].begin >= end
}

func (f *mapping) advance(n int64) error {
	f.offset += n
	if f.offset > MaxFileSize {
		return invalid("the file has more than %d bytes", int64(MaxFileSize))
	}
	return nil
}
