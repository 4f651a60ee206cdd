package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// The runtimes by the name --runtime takes.
const (
	containerd = "containerd"
	docker     = "docker"
	crio       = "crio"
	podman     = "podman"
)

var runtimeNames = []string{containerd, docker, crio, podman}

// request is what the operator asked for.
type request struct {
	runtime    string
	registries []string
	mirror     string // HOST:PORT
	configPath string // --config-path; empty when not given
	editConfig bool
	force      bool
	dryRun     bool
}

func (r request) mirrorURL() string { return "http://" + r.mirror }

// change is one file to edit. edit gets the file without any earlier part of
// ours and returns the bytes to write and what of them is ours; an empty part
// with unchanged bytes means that the file already says so by itself.
type change struct {
	path       string
	registries []string
	restart    string
	edit       func(base file) ([]byte, part, error)
}

// plan is what setup is about to do for one runtime.
type plan struct {
	changes []change
	notes   []string
}

func (p *plan) note(format string, args ...any) {
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
}

// planner looks at a node and decides what to change. It changes nothing.
type planner struct {
	disk    *disk
	state   *state
	version func(context.Context) (string, error)
	req     request
}

func (p *planner) plan(ctx context.Context) (*plan, error) {
	switch p.req.runtime {
	case containerd:
		return p.planContainerd(ctx)
	case docker:
		return p.planDocker()
	case crio, podman:
		return p.planRegistries()
	default:
		return nil, fmt.Errorf("unknown runtime %q: use one of %v", p.req.runtime, runtimeNames)
	}
}

// base reads a file as it would be without us.
func (p *planner) base(path string) (base, error) {
	cur, err := p.disk.read(path)
	if err != nil {
		return base{}, err
	}
	if r := p.state.find(path); r != nil {
		return fileBase(p.disk, r, cur, p.req.force)
	}
	return base{file: cur, original: true}, nil
}

const daemonJSON = "/etc/docker/daemon.json"

func (p *planner) planDocker() (*plan, error) {
	for _, reg := range p.req.registries {
		if reg != dockerHub {
			return nil, fmt.Errorf("registry %s: Docker's registry-mirrors work for %s only; leave --registry out, or use containerd's or Podman's configuration for other registries", reg, dockerHub)
		}
	}
	url := p.req.mirrorURL()
	pl := &plan{}
	pl.note("Docker asks the mirror for %s only; pulls from other registries go straight to them", dockerHub)
	pl.changes = []change{{
		path:       daemonJSON,
		registries: []string{dockerHub},
		restart:    "systemctl reload docker",
		edit: func(b file) ([]byte, part, error) {
			out, keyAdded, err := addDockerMirror(b.Data, url)
			return out, part{Kind: kindDocker, Mirror: url, KeyAdded: keyAdded}, err
		},
	}}
	return pl, nil
}

const (
	registriesConf = "/etc/containers/registries.conf"
	registriesDir  = "/etc/containers/registries.conf.d"
	dropIn         = registriesDir + "/50-damselfly.conf"
)

func (p *planner) planRegistries() (*plan, error) {
	regs := p.req.registries
	if len(regs) == 0 {
		regs = []string{dockerHub}
	}
	if slices.Contains(regs, defaultHost) {
		return nil, fmt.Errorf("%s has no %s: name each registry with --registry", p.req.runtime, defaultHost)
	}
	for _, reg := range regs {
		if strings.Contains(reg, ":") {
			return nil, fmt.Errorf("%s cannot have a mirror for %s: the registry becomes part of the mirror's path, where a port is not allowed; use a name without a port, and give dfdaemon its address by --allow-registry NAME=URL", p.req.runtime, reg)
		}
	}
	pl := &plan{}
	if err := p.checkPrefixes(pl, regs); err != nil {
		return nil, err
	}
	restart := ""
	if p.req.runtime == crio {
		restart = "systemctl reload crio"
	} else {
		pl.note("a user with a registries.conf of their own below ~/.config/containers does not get the mirror")
	}
	text := registriesText(p.req.mirror, regs)
	pl.changes = []change{{
		path: dropIn, registries: regs, restart: restart,
		edit: func(b file) ([]byte, part, error) {
			if b.Exists && !p.req.force {
				return nil, part{}, errors.New("it exists and was not written by setup: delete it or use --force (remove puts it back)")
			}
			return []byte(text), part{Kind: kindRegistries, Added: text}, nil
		},
	}}
	return pl, nil
}

// checkPrefixes refuses registries that another file defines: only the last
// definition counts, so theirs or ours would silently be dropped.
func (p *planner) checkPrefixes(pl *plan, regs []string) error {
	paths, err := filepath.Glob(p.disk.abs(registriesDir) + "/*.conf")
	if err != nil {
		return fmt.Errorf("list %s: %w", registriesDir, err)
	}
	var errs []error
	for _, name := range append([]string{p.disk.abs(registriesConf)}, paths...) {
		path := "/" + p.disk.rel(name)
		if path == dropIn {
			continue
		}
		// These are only read, so a link is as good as a file.
		data, err := p.disk.readThrough(path)
		if err != nil {
			return err
		}
		defined, err := definedRegistries(data)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, reg := range regs {
			if !slices.Contains(defined, reg) {
				continue
			}
			if p.req.force {
				pl.note("%s defines %s too; of the two definitions the runtime uses one", name, reg)
				continue
			}
			errs = append(errs, fmt.Errorf("%s already defines registry %s, and a registry can have one definition only: add the mirror there by hand, or use --force", name, reg))
		}
	}
	return errors.Join(errs...)
}
