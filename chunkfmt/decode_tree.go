package chunkfmt

func (d *decoder) attrs(r *reader) error {
	t := &d.x.Tree
	r.room(d.n.xattrs, 3, "xattr sets")
	r.room(d.n.attrs, 6, "attributes")
	if r.err != nil {
		return r.err
	}
	lengths, err := d.xattrLengths(r)
	if err != nil {
		return err
	}
	t.Attrs = sized[Attr](d.n.attrs)
	for i := range t.Attrs {
		t.Attrs[i] = Attr{
			Kind:   Kind(r.byte()),
			Flags:  AttrFlags(r.byte()),
			Mode:   uint16(r.atMost(1<<16 - 1)), //nolint:gosec // bounded
			UID:    r.u32(),
			GID:    r.u32(),
			Xattrs: r.u32(),
		}
	}
	text := string(r.take(r.rest()))
	for _, set := range t.Xattrs[1:] {
		for i := range set {
			name, value := lengths[0], lengths[1]
			lengths = lengths[2:]
			if name > len(text) || value > len(text)-name {
				r.fail("xattr names and values are cut off")
				return r.err
			}
			set[i] = Xattr{Name: text[:name], Value: text[name : name+value]}
			text = text[name+value:]
		}
	}
	if text != "" {
		r.fail("%d bytes too many", len(text))
	}
	return r.err
}

// xattrLengths makes the sets and returns the lengths of the names and values
// in them.
func (d *decoder) xattrLengths(r *reader) ([]int, error) {
	t := &d.x.Tree
	t.Xattrs = make([][]Xattr, 1+d.n.xattrs)
	var lengths []int
	left := uint64(d.limits.Attrs) //nolint:gosec // limits are positive
	for i := range t.Xattrs[1:] {
		n := r.atMost(left)
		left -= n
		r.room(n, 3, "xattrs")
		if r.err != nil {
			return nil, r.err
		}
		t.Xattrs[1+i] = make([]Xattr, n)
		for range n {
			lengths = append(lengths, int(r.atMost(MaxName)), int(r.atMost(MaxXattrValue))) //nolint:gosec // bounded
		}
	}
	return lengths, r.err
}

func (d *decoder) targets(r *reader) error {
	r.room(d.n.targets, 2, "targets")
	if r.err != nil {
		return r.err
	}
	d.x.Targets = sized[string](d.n.targets)
	lengths := make([]uint16, d.n.targets)
	for i := range lengths {
		lengths[i] = uint16(r.atMost(MaxPath)) //nolint:gosec // bounded
	}
	text := string(r.take(r.rest()))
	for i, n := range lengths {
		if int(n) > len(text) {
			r.fail("targets are cut off")
			return r.err
		}
		d.x.Targets[i], text = text[:n], text[n:]
	}
	if text != "" {
		r.fail("%d bytes too many", len(text))
	}
	return r.err
}

func (d *decoder) inodes(r *reader) error {
	r.room(d.n.inodes, 3, "inodes")
	if d.n.inodes == 0 {
		r.fail("there is no root")
	}
	if r.err != nil {
		return r.err
	}
	t := &d.x.Tree
	t.Inodes = sized[Inode](d.n.inodes)
	for i := range t.Inodes {
		t.Inodes[i].Attr = r.u32()
		if uint64(t.Inodes[i].Attr) >= d.n.attrs {
			r.fail("attributes %d of %d", t.Inodes[i].Attr, d.n.attrs)
			return r.err
		}
	}
	last := int64(0)
	for i := range t.Inodes {
		last += r.varint()
		t.Inodes[i].Mtime = last
	}
	for i := range t.Inodes {
		t.Inodes[i].Nsec = r.u32()
	}
	if err := d.shapes(r); err != nil {
		return err
	}
	return d.sizes(r)
}

// shapes is the inverse of writeShapes; it derives First.
func (d *decoder) shapes(r *reader) error {
	t := &d.x.Tree
	entries, runs, targets := uint64(0), uint64(0), uint32(0)
	for i := range t.Inodes {
		n := &t.Inodes[i]
		switch t.Attrs[n.Attr].Kind {
		case Dir:
			n.First, n.Count = uint32(entries), uint32(r.atMost(d.n.entries-entries)) //nolint:gosec // limits are below 2^32
			entries += uint64(n.Count)
		case File:
			if n.Count = uint32(r.atMost(d.n.runs - runs)); n.Count > 0 { //nolint:gosec // limits are below 2^32
				n.First = uint32(runs)
				runs += uint64(n.Count)
			}
		case Symlink, LinkOut:
			n.First = targets - uint32(r.atMost(uint64(targets))) //nolint:gosec // bounded
			if n.First == targets {
				targets++
			}
		case CharDevice, BlockDevice:
			n.Size = int64(r.atMost(1<<63 - 1)) //nolint:gosec // bounded
		default: // a Fifo, Socket or Whiteout has nothing more
		}
	}
	if r.err == nil && (entries != d.n.entries || runs != d.n.runs || uint64(targets) != d.n.targets) {
		r.fail("inodes have %d of %d entries, %d of %d runs and %d of %d targets",
			entries, d.n.entries, runs, d.n.runs, targets, d.n.targets)
	}
	return r.err
}

// sizes reads the sizes of files without chunks and adds up those of the
// others.
func (d *decoder) sizes(r *reader) error {
	t := &d.x.Tree
	inline := uint64(0)
	for i := range t.Inodes {
		n := &t.Inodes[i]
		switch {
		case t.Attrs[n.Attr].Kind != File:
		case n.Count > 0:
			size, ok := t.contentSize(n)
			if !ok {
				r.fail("the content of inode %d is too long", i)
				return r.err
			}
			n.Size = size
		default:
			size := r.atMost(d.n.inline - inline)
			if n.Size = int64(size); size > 0 { //nolint:gosec // limits are below 2^63
				n.First = uint32(inline)
				inline += size
			}
		}
	}
	return r.err
}

// contentSize adds up the lengths of the chunks of a file, and returns false
// when they are more than MaxFileSize.
func (t *Tree) contentSize(n *Inode) (int64, bool) {
	size := int64(0)
	for _, r := range t.Runs[n.First : n.First+n.Count] {
		if r.Repeat {
			size += int64(r.Count) * int64(t.Chunks[r.Chunk].Length)
		} else {
			for i := range t.Chunks[r.Chunk : r.Chunk+r.Count] {
				size += int64(t.Chunks[r.Chunk:][i].Length)
			}
		}
		if size > MaxFileSize {
			return 0, false
		}
	}
	return size, true
}

// entries derives the numbers of inodes, their parents and link counts.
func (d *decoder) entries(r *reader) error {
	r.room(d.n.entries, 3, "entries")
	if r.err != nil {
		return r.err
	}
	t := &d.x.Tree
	t.Entries = sized[Entry](d.n.entries)
	lengths := r.take(len(t.Entries))
	next, err := d.references(r)
	if err != nil {
		return err
	}
	if uint64(next) != d.n.inodes {
		r.fail("entries have %d of %d inodes", next, d.n.inodes)
		return r.err
	}
	text := string(r.take(r.rest()))
	for i, n := range lengths {
		if int(n) > len(text) {
			r.fail("names are cut off")
			return r.err
		}
		t.Entries[i].Name, text = text[:n], text[n:]
	}
	if text != "" {
		r.fail("%d bytes too many", len(text))
	}
	return r.err
}

// references reads the inodes of entries and returns the number of inodes.
func (d *decoder) references(r *reader) (uint32, error) {
	t := &d.x.Tree
	next := uint32(1)
	t.Inodes[0].Nlink = 2
	for dir := range t.Inodes {
		n := &t.Inodes[dir]
		if t.Attrs[n.Attr].Kind != Dir {
			continue
		}
		if uint32(dir) >= next {
			r.fail("directory %d has children before it has a name", dir)
		}
		for i := range t.Entries[n.First : n.First+n.Count] {
			back := uint32(r.atMost(uint64(next) - 1)) //nolint:gosec // bounded
			if uint64(next) >= d.n.inodes && back == 0 {
				r.fail("entries have more than %d inodes", d.n.inodes)
			}
			if r.err != nil {
				return 0, r.err
			}
			inode := next - back
			t.Entries[n.First:][i].Inode = inode
			child := &t.Inodes[inode]
			isDir := t.Attrs[child.Attr].Kind == Dir
			switch {
			case back == 0:
				next++
				child.Parent = uint32(dir)
				if isDir {
					child.Nlink = 1 // its own "."
					n.Nlink++
				}
			case isDir:
				r.fail("a hard link to directory %d", inode)
				return 0, r.err
			}
			child.Nlink++
		}
	}
	return next, r.err
}
