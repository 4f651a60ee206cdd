package node

import (
	"errors"
	"fmt"
)

// The kinds of change setup makes to a file.
const (
	kindHosts      = "containerd-hosts"
	kindConfigPath = "containerd-config-path"
	kindDocker     = "docker-mirrors"
	kindRegistries = "containers-registries"
)

// part is what of a file is ours, precise enough to take it out again after
// somebody edited the rest.
type part struct {
	Kind string `json:"kind"`
	// Mirror is the URL that was put in; kindHosts and kindDocker.
	Mirror string `json:"mirror,omitempty"`
	// Removed and Added are the texts exchanged; kindDocker has none.
	Removed     string   `json:"removed,omitempty"`
	Added       string   `json:"added,omitempty"`
	DialTimeout bool     `json:"dial_timeout,omitempty"`
	Section     []string `json:"section,omitempty"`
	KeyAdded    bool     `json:"key_added,omitempty"`
}

// cut takes the part out of cur. The error is errNotOurs when it cannot be
// told apart, or says why cur cannot be read.
func (p part) cut(cur []byte) ([]byte, error) {
	switch p.Kind {
	case kindHosts:
		return cutHosts(cur, p.Added, hostsFile{mirror: p.Mirror, dialTimeout: p.DialTimeout})
	case kindConfigPath:
		return cutConfigPath(cur, p.Section, p.Removed, p.Added)
	case kindDocker:
		return cutDockerMirror(cur, p.Mirror, p.KeyAdded)
	case kindRegistries:
		return cutRegistries(cur, p.Added)
	default:
		return nil, fmt.Errorf("state names an unknown kind of change %q", p.Kind)
	}
}

// base is a file without our part.
type base struct {
	file
	// original says that the bytes are those from before setup; otherwise
	// somebody edited the file since and they are the edited ones.
	original bool
}

// fileBase works out what a recorded file would be without us. With force an
// edited file counts as its original.
func fileBase(d *disk, r *record, cur file, force bool) (base, error) {
	sum := digest(cur.Data)
	switch {
	case !cur.Exists && !r.Existed:
		return base{original: true}, nil
	case cur.Exists && r.Existed && sum == r.Original:
		// Setup stopped before it wrote the file, or remove after.
		return base{file: file{Exists: true, Data: cur.Data, Attr: r.Attr}, original: true}, nil
	case cur.Exists && (sum == r.Written || sum == r.Previous):
		return originalOf(d, r)
	}
	out, err := cutEdited(d, r, cur)
	if err == nil {
		return out, nil
	}
	if force {
		return originalOf(d, r)
	}
	return base{}, fmt.Errorf("%s was changed since setup and %w; edit it by hand, or use --force to restore it as it was before setup", d.abs(r.Path), err)
}

func cutEdited(d *disk, r *record, cur file) (base, error) {
	if !cur.Exists {
		return base{}, errors.New("is gone")
	}
	data, err := r.Part.cut(cur.Data)
	if err != nil {
		return base{}, err
	}
	if !r.Existed && isBlank(data) {
		return base{original: true}, nil
	}
	if r.Existed && digest(data) == r.Original {
		return originalOf(d, r)
	}
	return base{file: file{Exists: true, Data: data, Attr: cur.Attr}}, nil
}

func originalOf(d *disk, r *record) (base, error) {
	if !r.Existed {
		return base{original: true}, nil
	}
	data, err := loadBackup(d, r)
	if err != nil {
		return base{}, err
	}
	return base{file: file{Exists: true, Data: data, Attr: r.Attr}, original: true}, nil
}
