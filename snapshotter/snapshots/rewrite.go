package snapshots

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
)

const lowerOption = "lowerdir="

// rewrite replaces, in the mounts that overlayfs returned for a snapshot with
// the given number of parents, the directories of all parents but the topmost
// keep by dir. The options stay as they are otherwise.
//
// What comes in is one of:
//
//	bind     source is the only parent's directory     a view
//	overlay  lowerdir has all parents', topmost first  a view, or with upperdir
func rewrite(mounts []mount.Mount, parents, keep int, dir string) ([]mount.Mount, error) {
	if !usableDir(dir) {
		return nil, fmt.Errorf("%q cannot be the lower directory of an overlay", dir)
	}
	if len(mounts) != 1 || keep < 0 || keep >= parents {
		return nil, fmt.Errorf("%d mounts for %d parents, %d of them to keep", len(mounts), parents, keep)
	}
	m := mounts[0]
	if m.Type == "bind" {
		if parents != 1 {
			return nil, fmt.Errorf("a bind mount for %d parents", parents)
		}
		m.Source = dir
		return []mount.Mount{m}, nil
	}
	at := slices.IndexFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, lowerOption) })
	if m.Type != "overlay" || at < 0 {
		return nil, fmt.Errorf("a mount of type %q with the options %q", m.Type, m.Options)
	}
	lower := strings.Split(m.Options[at][len(lowerOption):], ":")
	if len(lower) != parents {
		return nil, fmt.Errorf("%d lower directories for %d parents", len(lower), parents)
	}
	lower = append(slices.Clone(lower[:keep]), dir)
	upper := slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "upperdir=") })
	if len(lower) == 1 && !upper {
		// An overlay of one read-only directory is none.
		return []mount.Mount{{Type: "bind", Source: dir, Options: append(idMaps(m.Options), "ro", "rbind")}}, nil
	}
	m.Options = slices.Clone(m.Options)
	m.Options[at] = lowerOption + strings.Join(lower, ":")
	return []mount.Mount{m}, nil
}

// idMaps returns those of the options that map user and group IDs: they are for
// any type of mount, and the others for overlays.
func idMaps(options []string) []string {
	var out []string
	for _, o := range options {
		if strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") {
			out = append(out, o)
		}
	}
	return out
}

// usableDir reports whether a directory can be in the options of an overlay as it
// is, without escapes that containerd does not know.
func usableDir(dir string) bool {
	return filepath.IsAbs(dir) && !strings.ContainsAny(dir, ":,\\\"")
}

// readOnly makes the mounts of a staged layer of those of an active snapshot.
func readOnly(mounts []mount.Mount) []mount.Mount {
	out := make([]mount.Mount, len(mounts))
	for i, m := range mounts {
		m.Options = slices.Clone(m.Options)
		for j, o := range m.Options {
			if o == "rw" {
				m.Options[j] = "ro"
			}
		}
		out[i] = m
	}
	return out
}

// upperDir returns the directory that takes the changes of an overlay mount, or
// "".
func upperDir(mounts []mount.Mount) string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				return dir
			}
		}
	}
	return ""
}
