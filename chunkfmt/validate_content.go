package chunkfmt

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
	// Where the last page of the file so far lies: the blob, and how far the
	// place in its device is from the place in the file. Not known when the
	// page begins in a hole or an External blob.
	blob  uint32
	base  int64
	known bool
}

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
	inside := f.offset%BlockSize != 0 // of a page that has begun before
	if f.devices[i] == nowhere {
		if inside && f.known {
			return f.split(c)
		}
		f.known = false
		return f.advance(int64(c.Length))
	}
	base := f.devices[i] - f.offset
	if base%BlockSize != 0 || inside && f.known && (c.Blob != f.blob || base != f.base) {
		return f.split(c)
	}
	f.blob, f.base, f.known = c.Blob, base, true
	return f.advance(int64(c.Length))
}

// hole goes over n zeros.
func (f *mapping) hole(n int64) error {
	if page := (f.offset + n) &^ (BlockSize - 1); page >= f.offset {
		f.known = false // the last page begins in the hole
	}
	return f.advance(n)
}

func (f *mapping) advance(n int64) error {
	f.offset += n
	if f.offset > MaxFileSize {
		return invalid("the file has more than %d bytes", int64(MaxFileSize))
	}
	return nil
}

func (f *mapping) split(c *Chunk) error {
	return invalid("at byte %d the chunk at %d of group %d of blob %d is where no page can be mapped",
		f.offset, c.Offset, c.Group, c.Blob)
}
