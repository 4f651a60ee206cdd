package chunkfmt

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// maxLinkSteps bounds the names that one merge looks up for all its LinkOuts
// and Implied directories, once for each layer that has the directory, so that
// crafted links cannot hold it up for more than some seconds.
const maxLinkSteps = 1 << 25

// symlinkSteps is what following a symbolic link counts for.
const symlinkSteps = 64

// linkTable knows what LinkOuts link to.
type linkTable struct {
	layers []mergeLayer
	// targets has the inode of every LinkOut; it is none itself.
	targets map[inodeRef]inodeRef
	// given has what linked inodes get from their links.
	given map[inodeRef]linkAttr
	steps int
	// made counts the directories that grafting makes.
	made int
	// dirs has the directories that links of the layer top were looked up in.
	dirs map[string][]inodeRef
	top  int
}

// linkAttr is what the links to an inode leave it with. Xattrs is the number of
// a set in attrTable.
type linkAttr struct {
	Attr
	mtime int64
	nsec  uint32
}

// resolveLinks finds the targets of all LinkOuts, also of those that are not
// visible in the end: making them has changed what they link to. The target of
// a tar's link that its layer has by then is no LinkOut, so that it is always
// what the layers below have, even if this layer removes or replaces it later.
func (m *merger) resolveLinks() error {
	l := &m.links
	l.layers = m.layers
	for i := range m.layers {
		layer := &m.layers[i]
		if !slices.ContainsFunc(layer.Attrs, func(a Attr) bool { return a.Kind == LinkOut }) {
			continue
		}
		if l.targets == nil {
			l.targets, l.given = map[inodeRef]inodeRef{}, map[inodeRef]linkAttr{}
		}
		for j := range layer.Inodes {
			link := inodeRef{u32(i), u32(j)}
			if layer.Kind(link.inode) != LinkOut {
				continue
			}
			target, err := l.find(link)
			if err == nil {
				l.targets[link] = target
				err = m.give(link, target)
			}
			if err != nil {
				name := (&validator{Tree: layer.Tree}).path(link.inode)
				return fmt.Errorf("layer %d: hard link %s to %s: %w", i, name, layer.Target(link.inode), err)
			}
		}
	}
	return nil
}

// give changes what a link leads to as Draft.LinkAs does.
func (m *merger) give(link, target inodeRef) error {
	from := &m.layers[link.layer]
	have, ok := m.links.given[target]
	if !ok {
		layer := &m.layers[target.layer]
		have.Attr = *layer.Attr(target.inode)
		have.Xattrs = m.attrs.set(layer, have.Xattrs)
	}
	a, n := from.Attr(link.inode), &from.Inodes[link.inode]
	if have.Kind != Symlink {
		have.Mode = a.Mode
	}
	have.UID, have.GID, have.mtime, have.nsec = a.UID, a.GID, n.Mtime, n.Nsec
	taken := m.attrs.keep(m.attrs.set(from, a.Xattrs), have.Kind, true)
	var err error
	have.Xattrs, err = m.attrs.union(m.attrs.keep(have.Xattrs, have.Kind, false), taken)
	m.links.given[target] = have
	return err
}

// find returns what the layers below a LinkOut have at its target.
func (l *linkTable) find(link inodeRef) (inodeRef, error) {
	target := l.layers[link.layer].Target(link.inode)
	found, ok, err := l.lookup(int(link.layer), target)
	switch {
	case err != nil:
		return inodeRef{}, err
	case !ok:
		return inodeRef{}, invalid("%s does not exist below", target)
	case l.layers[found.layer].Kind(found.inode) == Dir:
		return inodeRef{}, invalid("%s is a directory", target)
	}
	return found, nil
}

// lookup returns what the layers below top have at a clean path; of a
// directory, any part. It follows symbolic links, but not as the last name.
func (l *linkTable) lookup(top int, name string) (inodeRef, bool, error) {
	dir, base := path.Split(name)
	parts, err := l.directory(top, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return inodeRef{}, false, err
	}
	if base != "" {
		if err := l.step(len(parts)); err != nil {
			return inodeRef{}, false, err
		}
		parts = l.child(parts, base)
	}
	if len(parts) == 0 {
		return inodeRef{}, false, nil
	}
	return parts[0], true, nil
}

// directory is lookup for directories, follows the last name too, and returns
// all parts.
func (l *linkTable) directory(top int, name string) ([]inodeRef, error) {
	if l.dirs == nil || l.top != top {
		l.dirs, l.top = map[string][]inodeRef{}, top
	}
	if parts, ok := l.dirs[name]; ok {
		return parts, nil
	}
	parts, clean := l.root(top), name
	for links, rest := 0, name; rest != "" && len(parts) > 0; {
		if err := l.step(len(parts)); err != nil {
			return nil, err
		}
		var first string
		first, rest, _ = strings.Cut(rest, "/")
		parts = l.child(parts, first)
		if len(parts) == 0 {
			break
		}
		layer := &l.layers[parts[0].layer]
		switch kind := layer.Kind(parts[0].inode); {
		case kind == Dir:
			continue
		case kind != Symlink:
			parts = nil
			continue
		}
		full := before(clean, rest)
		if links++; links > maxFollowed {
			return nil, invalid("too many symbolic links at %s", full)
		}
		var err error
		if clean, err = joinTarget(path.Dir(full), layer.Target(parts[0].inode), rest); err != nil {
			return nil, err
		}
		if err := l.step(symlinkSteps); err != nil {
			return nil, err
		}
		parts, rest = l.root(top), clean
	}
	l.dirs[name] = parts
	return parts, nil
}

// root returns the parts of the root directory of the layers below top.
func (l *linkTable) root(top int) []inodeRef {
	var dir []inodeRef
	for i := top - 1; i >= 0; i-- {
		dir = append(dir, inodeRef{layer: u32(i)})
		if l.layers[i].Attr(0).Flags&(Opaque|Replaced) != 0 {
			break
		}
	}
	return dir
}

// child returns what a directory made of parts has under a name: nothing, one
// inode that is no directory, or the parts of a directory that have children.
func (l *linkTable) child(parts []inodeRef, name string) []inodeRef {
	var found []inodeRef
	for _, p := range parts {
		layer := &l.layers[p.layer]
		inode, ok := layer.Child(p.inode, name)
		if !ok {
			continue
		}
		at := inodeRef{p.layer, inode}
		a := layer.Attr(inode)
		switch {
		case a.Kind == Dir:
			found = append(found, at)
			if a.Flags&(Opaque|Replaced) != 0 {
				return found
			}
			continue
		case len(found) > 0 || a.Kind == Whiteout:
			return found
		case a.Kind == LinkOut:
			at = l.targets[at]
		}
		return []inodeRef{at}
	}
	return found
}
