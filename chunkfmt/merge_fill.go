package chunkfmt

import (
	"fmt"
	"math"
	"slices"
	"sort"
)

// fill writes the inodes, all but what placeEntries has written.
func (m *merger) fill() error {
	runs, chunks := uint64(0), uint64(0)
	for i := range m.layers {
		runs += uint64(len(m.layers[i].Runs))
		chunks += uint64(len(m.layers[i].Chunks))
	}
	// A layer's run breaks where the merged tree has other layers' chunks in
	// between. That is rare, and must not let a few runs become billions.
	most := min(16*(runs+chunks)+1<<16, math.MaxUint32)
	dirs := m.dirs
	for i := range m.out.Inodes {
		n := &m.out.Inodes[i]
		if len(dirs) > 0 && dirs[0].inode == u32(i) {
			if err := m.attrs.ofDir(n, m.parts[dirs[0].first:dirs[0].last]); err != nil {
				return err
			}
			dirs = dirs[1:]
			continue
		}
		m.fillInode(n, m.sources[i])
		if uint64(len(m.out.Runs)) > most {
			return fmt.Errorf("%w: the layers' chunks lie between each other: more than %d runs", ErrInvalid, most)
		}
	}
	return nil
}

func (m *merger) fillInode(to *Inode, from inodeRef) {
	layer := &m.layers[from.layer]
	n := &layer.Inodes[from.inode]
	to.Mtime, to.Nsec, to.Size = n.Mtime, n.Nsec, n.Size
	if given, ok := m.links.given[from]; ok {
		to.Attr = m.attrs.intern(given.Attr)
		to.Mtime, to.Nsec = given.mtime, given.nsec
	} else {
		to.Attr = m.attrs.of(layer, from.inode)
	}
	switch layer.Attrs[n.Attr].Kind {
	case File:
		if n.Count == 0 && n.Size != 0 {
			data, _ := layer.InlineData(from.inode)
			to.First = u32(len(m.out.Inline))
			m.out.Inline = append(m.out.Inline, data...)
			return
		}
		if n.Count != 0 {
			to.First = u32(len(m.out.Runs))
			m.placeRuns(layer, layer.Runs[n.First:n.First+n.Count])
			to.Count = u32(len(m.out.Runs)) - to.First
		}
	case Symlink:
		to.First = m.attrs.target(layer, from.inode)
	}
}

// placeRuns writes the runs of one file.
func (m *merger) placeRuns(layer *mergeLayer, runs []Run) {
	first := len(m.out.Runs)
	place, breaks := layer.chunks.place, layer.chunks.breaks
	for _, r := range runs {
		if r.Repeat {
			m.out.Runs = extendRun(m.out.Runs, first, Run{place[r.Chunk], r.Count, true})
			continue
		}
		for at, end := r.Chunk, r.end(); at < end; {
			n := end - at
			if breaks[end-1] != breaks[at] {
				n = u32(sort.Search(int(n), func(i int) bool { return breaks[at+u32(i)] != breaks[at] }))
			}
			m.out.Runs = extendRun(m.out.Runs, first, Run{Chunk: place[at], Count: n})
			at += n
		}
	}
}

// extendRun is extend for each chunk of a run.
func extendRun(runs []Run, first int, r Run) []Run {
	runs = extend(runs, first, r.Chunk)
	if r.Count == 1 {
		return runs
	}
	last, rest := &runs[len(runs)-1], r.Count-1
	switch {
	case r.Repeat && (last.Repeat || last.Count == 1):
		last.Repeat = true
		last.Count += rest
	case r.Repeat:
		runs = append(runs, Run{r.Chunk, rest, rest > 1})
	case last.Repeat:
		runs = append(runs, Run{Chunk: r.Chunk + 1, Count: rest})
	default:
		last.Count += rest
	}
	return runs
}

// checkShared checks what no layer could by itself: the chunks in blobs that
// several layers use, and the files that have chunks in External blobs.
func (m *merger) checkShared() error {
	shared := false
	for _, b := range m.blobs.order {
		shared = shared || len(b.parts) > 1
	}
	external := make([]bool, len(m.layers))
	for i := range m.layers {
		external[i] = slices.ContainsFunc(m.layers[i].Blobs, func(b Blob) bool { return b.External })
		shared = shared || external[i]
	}
	if !shared {
		return nil
	}
	v := &validator{Tree: m.out}
	if err := v.checkChunks(); err != nil {
		return err
	}
	for i, from := range m.sources[1:] {
		n := &m.out.Inodes[i+1]
		if !external[from.layer] || n.Count == 0 || m.out.Attrs[n.Attr].Kind != File {
			continue
		}
		f := mapping{contents: &contents{validator: v}}
		for j := range m.out.Runs[n.First : n.First+n.Count] {
			if err := f.run(&m.out.Runs[int(n.First)+j]); err != nil {
				return v.at(i+1, err)
			}
		}
	}
	return nil
}
