package chunkfmt

import (
	"fmt"
	"path"
	"strings"
)

const (
	// maxLinkChain bounds how many hard links to hard links of other layers
	// are followed: more than an image has layers.
	maxLinkChain = 1000
	// maxLinkSteps bounds the names that one merge looks up for all its
	// LinkOuts, so that crafted symbolic links cannot hold it up for long.
	maxLinkSteps = 1 << 24
)

// linkResolver finds what LinkOuts link to.
type linkResolver struct {
	layers []mergeLayer
	known  map[inodeRef]inodeRef
	steps  int
	depth  int
}

func (l *linkResolver) init(layers []mergeLayer) {
	l.layers = layers
	l.known = map[inodeRef]inodeRef{}
}

// resolve returns the inode that a LinkOut links to. A tar's links come in its
// order: a target that the layer had before would be no LinkOut, so the target
// is what the layers below have, even where this layer removes or replaces it
// later on. Only a target that they do not have may be one of this layer.
func (l *linkResolver) resolve(link inodeRef) (inodeRef, error) {
	if found, ok := l.known[link]; ok {
		return found, nil
	}
	if l.depth++; l.depth > maxLinkChain {
		return inodeRef{}, fmt.Errorf("%w: a loop of links", ErrInvalid)
	}
	defer func() { l.depth-- }()
	target := l.layers[link.layer].Target(link.inode)
	found, ok, err := l.lookup(int(link.layer)-1, target)
	if err == nil && !ok {
		found, ok, err = l.lookup(int(link.layer), target)
	}
	switch {
	case err != nil:
		return inodeRef{}, err
	case !ok:
		return inodeRef{}, fmt.Errorf("%w: %s does not exist", ErrInvalid, target)
	case l.layers[found.layer].Kind(found.inode) == Dir:
		return inodeRef{}, fmt.Errorf("%w: %s is a directory", ErrInvalid, target)
	}
	l.known[link] = found
	return found, nil
}

// lookup returns what the layers up to top have at a clean path, of a
// directory any part. It follows symbolic links in the path, but not the last
// name.
func (l *linkResolver) lookup(top int, name string) (inodeRef, bool, error) {
	dir, done := l.root(top), ""
	for links := 0; ; {
		if name == "" {
			if len(dir) == 0 {
				return inodeRef{}, false, nil
			}
			return dir[0], true, nil
		}
		if l.steps++; l.steps > maxLinkSteps {
			return inodeRef{}, false, fmt.Errorf("%w: the layers' hard links take too many steps", ErrInvalid)
		}
		first, rest, more := strings.Cut(name, "/")
		next, err := l.children(dir, first)
		if err != nil || len(next) == 0 {
			return inodeRef{}, false, err
		}
		at := next[0]
		kind := l.layers[at.layer].Kind(at.inode)
		switch {
		case !more:
			return at, true, nil
		case kind == Dir:
			dir, done, name = next, path.Join(done, first), rest
		case kind == Symlink:
			if links++; links > maxSymlinks {
				return inodeRef{}, false, fmt.Errorf("%w: too many symbolic links at %s", ErrInvalid, path.Join(done, first))
			}
			target := l.layers[at.layer].Target(at.inode)
			if !path.IsAbs(target) {
				target = path.Join(done, target)
			}
			name = strings.TrimPrefix(path.Clean("/"+path.Join(target, rest)), "/")
			dir, done = l.root(top), ""
		default:
			return inodeRef{}, false, nil
		}
	}
}

func (l *linkResolver) root(top int) []inodeRef {
	var dir []inodeRef
	for i := top; i >= 0; i-- {
		dir = append(dir, inodeRef{layer: uint32(i)})
		if l.layers[i].Attr(0).Flags&Opaque != 0 {
			break
		}
	}
	return dir
}

// children returns the parts, from top to bottom, of what a directory made of
// parts has under a name: nothing, one inode that is no directory, or
// directories.
func (l *linkResolver) children(parts []inodeRef, name string) ([]inodeRef, error) {
	var found []inodeRef
	for _, p := range parts {
		layer := &l.layers[p.layer]
		inode, ok := layer.Child(p.inode, name)
		if !ok {
			continue
		}
		at := inodeRef{p.layer, inode}
		switch a := layer.Attr(inode); {
		case a.Kind == Dir:
			found = append(found, at)
			if a.Flags&Opaque != 0 {
				return found, nil
			}
			continue
		case len(found) > 0 || a.Kind == Whiteout:
			return found, nil
		case a.Kind == LinkOut:
			target, err := l.resolve(at)
			return []inodeRef{target}, err
		}
		return []inodeRef{at}, nil
	}
	return found, nil
}
