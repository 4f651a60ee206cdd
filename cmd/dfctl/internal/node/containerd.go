package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	dockerHub    = "docker.io"
	defaultHost  = "_default"
	configTOML   = "/etc/containerd/config.toml"
	defaultCerts = "/etc/containerd/certs.d"

	restartContainerd = "systemctl restart containerd"
)

// release is a containerd release; the zero value is an unknown one.
type release struct{ major, minor int }

// The releases that brought what setup depends on.
var (
	configVersion3  = release{2, 0}
	hasDialTimeout  = release{2, 1}
	hasDefaultPaths = release{2, 2} // of hosts.toml files and of imports
)

func (r release) atLeast(min release) bool {
	return r.major > min.major || (r.major == min.major && r.minor >= min.minor)
}

var releasePattern = regexp.MustCompile(`\bv?(\d+)\.(\d+)\.\d+`)

// parseRelease finds the release in the output of containerd --version.
func parseRelease(out string) release {
	m := releasePattern.FindStringSubmatch(out)
	if m == nil {
		return release{}
	}
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	if err1 != nil || err2 != nil {
		return release{}
	}
	return release{major, minor}
}

// runContainerdVersion asks the installed containerd for its version.
func runContainerdVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, containerd, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("run containerd --version: %w", err)
	}
	return string(out), nil
}

// criSettings is where containerd's CRI plugin looks for hosts.toml files.
type criSettings struct {
	criConfig
	dirs []string // none when config_path is unset
	from string   // the file or default that says so
}

// readCRI reads config.toml, without our own edit if wanted, and its imports.
func (p *planner) readCRI(main []byte, rel release) (criSettings, error) {
	version := int64(2)
	if rel.atLeast(configVersion3) {
		version = 3
	}
	c, err := parseCRIConfig(main, version)
	if err != nil {
		return criSettings{}, fmt.Errorf("%s: %w", p.disk.abs(configTOML), err)
	}
	s := criSettings{criConfig: c, from: configTOML}
	if len(c.imports) == 0 && rel.atLeast(hasDefaultPaths) {
		c.imports = []string{"/etc/containerd/conf.d/*.toml"} // containerd's default
	}
	// Imported files win over the main one; the last counts.
	for _, pattern := range c.imports {
		if err := p.readImports(&s, pattern, version); err != nil {
			return criSettings{}, err
		}
	}
	switch {
	case s.configPath != "":
		s.dirs = filepath.SplitList(s.configPath)
	case s.legacy == "" && rel.atLeast(hasDefaultPaths):
		s.dirs, s.from = []string{defaultCerts, "/etc/docker/certs.d"}, "containerd's default"
	}
	return s, nil
}

func (p *planner) readImports(s *criSettings, pattern string, version int64) error {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(configTOML), pattern)
	}
	names, err := filepath.Glob(p.disk.abs(pattern))
	if err != nil {
		return fmt.Errorf("%s: imports %q: %w", configTOML, pattern, err)
	}
	for _, name := range names {
		path := "/" + p.disk.rel(name)
		data, err := p.disk.readThrough(path)
		if err != nil {
			return err
		}
		c, err := parseCRIConfig(data, version)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if c.configPath != "" {
			s.configPath, s.from = c.configPath, path
		}
		if s.legacy == "" {
			s.legacy = c.legacy
		}
	}
	return nil
}

// release asks for containerd's release; unknown is not an error, because
// every release understands what is written for an unknown one.
func (p *planner) release(ctx context.Context) release {
	out, err := p.version(ctx)
	if err != nil {
		return release{}
	}
	return parseRelease(out)
}

func (p *planner) planContainerd(ctx context.Context) (*plan, error) {
	pl := &plan{}
	rel := p.release(ctx)
	main, err := p.base(configTOML)
	if errors.Is(err, errNotRegular) && !p.req.editConfig {
		main.Data, err = p.disk.readThrough(configTOML)
	}
	if err != nil {
		return nil, err
	}
	cri, err := p.readCRI(main.Data, rel)
	if err != nil {
		return nil, err
	}
	dir, err := p.certsDir(pl, cri)
	if err != nil {
		return nil, err
	}
	regs := p.req.registries
	if len(regs) == 0 {
		regs = []string{defaultHost}
	}
	for _, reg := range regs {
		c, err := p.hostsChange(dir, reg, rel)
		if err != nil {
			return nil, err
		}
		pl.changes = append(pl.changes, c)
	}
	if slices.Contains(regs, defaultHost) {
		p.noteShadowed(pl, dir, regs, cri.dirs)
	}
	pl.note("ctr reads these files only when told to: ctr images pull --hosts-dir %s …", dir)
	return pl, nil
}

// certsDir decides where the hosts.toml files go, and adds the edit of
// config.toml to pl when the CRI plugin does not look there yet.
func (p *planner) certsDir(pl *plan, cri criSettings) (string, error) {
	dir := p.req.configPath
	if dir == "" {
		dir = defaultCerts
		if len(cri.dirs) > 0 {
			dir = cri.dirs[0]
		}
	}
	edit := p.req.editConfig || p.state.find(configTOML) != nil
	switch {
	case slices.Contains(cri.dirs, dir):
	case cri.disabled:
		pl.note("the CRI plugin is switched off in %s; nerdctl and ctr use the files, Kubernetes would not", configTOML)
	case len(cri.dirs) > 0 && edit:
		return "", fmt.Errorf("%s sets config_path to %s: leave --config-path out, or change config_path by hand", cri.from, cri.configPath)
	case len(cri.dirs) > 0:
		pl.note("containerd's CRI plugin reads %s (%s), not %s; only tools that are pointed at %s use the mirror", strings.Join(cri.dirs, " and "), cri.from, dir, dir)
	case edit && cri.legacy != "":
		return "", fmt.Errorf("%s has %s in %s: containerd does not start its CRI plugin when config_path is set beside it; move those settings to hosts.toml files under %s first", configTOML, cri.legacy, sectionHeader(cri.section), dir)
	case edit:
		pl.changes = append(pl.changes, configPathChange(cri.section, dir))
	case p.req.configPath != "":
		pl.note("%s sets no config_path, so Kubernetes pulls do not use the mirror until it says:\n%s", configTOML, configPathSnippet(cri.section, dir))
	case cri.legacy != "":
		return "", fmt.Errorf("%s configures registries by %s in %s, and containerd allows no config_path beside it: move those settings to hosts.toml files under %s first", configTOML, cri.legacy, sectionHeader(cri.section), dir)
	default:
		return "", fmt.Errorf("containerd would not read the mirror configuration, because %s sets no config_path. Add this and restart containerd, or let setup do it with --edit-config:\n\n%s\nIf only ctr or nerdctl is used, name the directory instead: --config-path %s", configTOML, configPathSnippet(cri.section, dir), dir)
	}
	return dir, nil
}

func configPathChange(section []string, dir string) change {
	return change{
		path: configTOML, restart: restartContainerd,
		edit: func(b file) ([]byte, part, error) {
			pt := part{Kind: kindConfigPath, Section: section}
			if !isBlank(b.Data) {
				out, removed, added, err := setConfigPath(b.Data, section, dir)
				pt.Removed, pt.Added = removed, added
				return out, pt, err
			}
			// Without a version line containerd would read version 1.
			out, _, _, err := setConfigPath([]byte(emptyConfig(section)), section, dir)
			pt.Removed, pt.Added = string(b.Data), string(out)
			return out, pt, err
		},
	}
}

// emptyConfig starts a config.toml in the version that section belongs to.
func emptyConfig(section []string) string {
	if equalPath(section, registryV3) {
		return "version = 3\n"
	}
	return "version = 2\n"
}

// hostsChange is the edit of one registry's hosts.toml.
func (p *planner) hostsChange(dir, reg string, rel release) (change, error) {
	sub := hostDir(p.disk, dir, reg)
	path := filepath.Join(sub, "hosts.toml")
	h := hostsFile{mirror: p.req.mirrorURL(), server: upstream(reg), dialTimeout: rel.atLeast(hasDialTimeout)}
	certs, err := p.certificates(sub)
	if err != nil {
		return change{}, err
	}
	return change{
		path: path, registries: []string{reg},
		edit: func(b file) ([]byte, part, error) {
			if len(b.Data) == 0 && len(certs) > 0 && !p.req.force {
				return nil, part{}, fmt.Errorf("%s has no effect any more once there is a hosts.toml: name the certificates in a hosts.toml of your own first (ca, client), or use --force", strings.Join(certs, ", "))
			}
			out, block, err := h.insert(b.Data)
			if block == "" {
				return out, part{}, err
			}
			return out, part{Kind: kindHosts, Mirror: h.mirror, Added: block, DialTimeout: h.dialTimeout}, err
		},
	}, nil
}

// hostDir is the directory containerd looks into for a registry. For one with
// a port there are two spellings, and host_port_ comes first.
func hostDir(d *disk, dir, reg string) string {
	if host, port, err := net.SplitHostPort(reg); err == nil && !strings.Contains(host, ":") {
		alt := filepath.Join(dir, host+"_"+port+"_")
		if _, err := os.Stat(d.abs(alt)); err == nil {
			return alt
		}
	}
	return filepath.Join(dir, reg)
}

// upstream is the server line for a registry; empty where containerd's own
// choice is the right one.
func upstream(reg string) string {
	host := reg
	if h, _, err := net.SplitHostPort(reg); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	switch {
	case reg == dockerHub:
		return "https://registry-1.docker.io"
	case reg == defaultHost, host == "localhost", ip != nil && ip.IsLoopback():
		return ""
	}
	return "https://" + reg
}

// certificates lists the files that containerd reads from a registry's
// directory only as long as it holds no hosts.toml.
func (p *planner) certificates(sub string) ([]string, error) {
	var out []string
	for _, pattern := range []string{"*.crt", "*.cert"} {
		names, err := filepath.Glob(filepath.Join(p.disk.abs(sub), pattern))
		if err != nil {
			return nil, fmt.Errorf("list certificates in %s: %w", sub, err)
		}
		out = append(out, names...)
	}
	return out, nil
}

// noteShadowed names the registries that do not get _default, because they
// have a directory of their own.
func (p *planner) noteShadowed(pl *plan, dir string, regs, dirs []string) {
	var own []string
	// A directory that cannot be listed, or is yet to be made, has none.
	entries, _ := os.ReadDir(p.disk.abs(dir))
	for _, e := range entries {
		if e.Name() != defaultHost && !slices.Contains(regs, e.Name()) {
			own = append(own, e.Name())
		}
	}
	if len(own) > 0 {
		pl.note("%s have directories of their own in %s, so %s does not reach them: name each with --registry", strings.Join(own, ", "), dir, defaultHost)
	}
	for _, other := range dirs {
		if other == dir {
			continue
		}
		if entries, err := os.ReadDir(p.disk.abs(other)); err == nil && len(entries) > 0 {
			pl.note("%s in %s comes before everything in %s", defaultHost, dir, other)
		}
	}
}
