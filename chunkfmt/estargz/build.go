package estargz

import (
	"context"
	"fmt"
	"math"
	"path"
	"strings"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

const (
	whiteoutPrefix = ".wh."
	// opaqueName hides what lower layers have in its directory. Other names
	// with its prefix in the root are left-overs of aufs.
	opaqueName = ".wh..wh..opq"
	aufsPrefix = ".wh..wh."

	// entriesPerCheck is after how many entries the context is looked at.
	entriesPerCheck = 1024
)

// landmarks are files of eStargz that tell how far to prefetch.
var landmarks = map[string]bool{".prefetch.landmark": true, ".no.prefetch.landmark": true}

// build makes the index that a table's JSON describes.
func build(ctx context.Context, raw []byte, at place, size int64, o Options) (*chunkfmt.Index, error) {
	b := &builder{
		draft:  chunkfmt.NewDraft(),
		names:  map[string]bool{},
		layout: layout{end: at.dataEnd, holes: map[uint32]uint32{}},
	}
	n := 0
	add := func(e *entry) error {
		if n++; n%entriesPerCheck == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		return b.add(e)
	}
	if err := scan(raw, o.Limits.orDefault().Entries, add); err != nil {
		return nil, err
	}
	if err := b.finish(); err != nil {
		return nil, err
	}
	blob := chunkfmt.Blob{Digest: o.Digest, Size: size, DeviceSize: b.device, Unproven: true}
	blob.Groups = b.tile(at.codec, size)
	b.hashHoles()
	tree, err := b.draft.Freeze(b.chunks, []chunkfmt.Blob{blob})
	if err != nil {
		return nil, err
	}
	index := &chunkfmt.Index{Tree: *tree, DiffID: o.DiffID}
	return index, index.Validate()
}

// builder turns entries into a draft and a layout of the blob.
type builder struct {
	draft  *chunkfmt.Draft
	names  map[string]bool
	chunks []chunkfmt.Chunk
	file   file
	layout
}

// add takes the next entry of the table.
func (b *builder) add(e *entry) error {
	if e.Type == "chunk" {
		return b.addPiece(e)
	}
	if err := b.finish(); err != nil {
		return err
	}
	name := strings.TrimPrefix(path.Clean("/"+e.Name), "/")
	if b.names[name] {
		return fmt.Errorf("%w: a second entry of this name", chunkfmt.ErrInvalid)
	}
	b.names[name] = true
	base := path.Base(name)
	switch {
	case landmarks[name] && e.Type == "reg":
		return b.begin(e, nil)
	case base == opaqueName:
		return b.draft.Hide(path.Dir(name))
	case strings.HasPrefix(name, aufsPrefix):
		return nil
	case base == whiteoutPrefix:
		return fmt.Errorf("%w: a whiteout of nothing", chunkfmt.ErrInvalid)
	case strings.HasPrefix(base, whiteoutPrefix):
		return b.draft.Remove(path.Join(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix)))
	case e.Type == "hardlink":
		return b.link(name, e)
	case name == "" && e.Type == "dir":
		return nil // unpacking leaves the root directory as it is
	}
	n, err := node(e)
	if err != nil {
		return err
	}
	if err := b.draft.Put(name, n); err != nil {
		return err
	}
	if n.Kind == chunkfmt.File {
		return b.begin(e, n)
	}
	return nil
}

// link gives what it links to its attributes, as unpacking its header does.
// Tables that have none for links leave it alone.
func (b *builder) link(name string, e *entry) error {
	if e.Mode == 0 && e.ModTime == "" {
		return b.draft.Link(name, e.LinkName)
	}
	n, err := node(e)
	if err != nil {
		return err
	}
	return b.draft.LinkAs(name, e.LinkName, n)
}

var kinds = map[string]chunkfmt.Kind{
	"hardlink": chunkfmt.LinkOut,
	"dir":      chunkfmt.Dir,
	"reg":      chunkfmt.File,
	"symlink":  chunkfmt.Symlink,
	"char":     chunkfmt.CharDevice,
	"block":    chunkfmt.BlockDevice,
	"fifo":     chunkfmt.Fifo,
}

// node makes the node of an entry that is no hard link.
func node(e *entry) (*chunkfmt.Node, error) {
	kind, ok := kinds[e.Type]
	if !ok {
		return nil, fmt.Errorf("%w: unknown type %.80q", chunkfmt.ErrInvalid, e.Type)
	}
	n := &chunkfmt.Node{Kind: kind, Mode: uint16(e.Mode & 0o7777)}
	var err error
	if n.Mtime, n.Nsec, err = e.mtime(); err != nil {
		return nil, err
	}
	if e.UID < 0 || e.UID > math.MaxUint32 || e.GID < 0 || e.GID > math.MaxUint32 {
		return nil, fmt.Errorf("%w: owner %d:%d", chunkfmt.ErrInvalid, e.UID, e.GID)
	}
	n.UID, n.GID = uint32(e.UID), uint32(e.GID)
	switch kind {
	case chunkfmt.File:
		if e.Size < 0 || e.Size > chunkfmt.MaxFileSize {
			return nil, fmt.Errorf("%w: a file of %d bytes", chunkfmt.ErrInvalid, e.Size)
		}
		n.Size = e.Size
	case chunkfmt.Symlink:
		if e.LinkName == "" || len(e.LinkName) > chunkfmt.MaxPath || strings.ContainsRune(e.LinkName, 0) {
			return nil, fmt.Errorf("%w: link target %.80q", chunkfmt.ErrInvalid, e.LinkName)
		}
		n.Target = e.LinkName
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		if e.DevMajor < 0 || e.DevMajor > math.MaxInt32 || e.DevMinor < 0 || e.DevMinor > math.MaxInt32 {
			return nil, fmt.Errorf("%w: device %d:%d", chunkfmt.ErrInvalid, e.DevMajor, e.DevMinor)
		}
		n.Size = e.DevMajor<<32 | e.DevMinor
	}
	n.Xattrs, err = xattrs(e.Xattrs)
	return n, err
}

func xattrs(m map[string][]byte) ([]chunkfmt.Xattr, error) {
	var all []chunkfmt.Xattr
	for name, value := range m {
		if name == "" || len(name) > chunkfmt.MaxName || strings.ContainsRune(name, 0) || len(value) > chunkfmt.MaxXattrValue {
			return nil, fmt.Errorf("%w: extended attribute %.80q of %d bytes", chunkfmt.ErrInvalid, name, len(value))
		}
		all = append(all, chunkfmt.Xattr{Name: name, Value: string(value)})
	}
	return all, nil
}
