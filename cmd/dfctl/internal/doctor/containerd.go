package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// containerd looks at the runtime and its configuration.
func (d *doctor) containerd(ctx context.Context) {
	major, minor, known := d.version(ctx)
	c, f := d.readConfig(ctx)
	if c == nil {
		d.report.add(f)
		return
	}
	name := d.proxy(c)
	if name == "" {
		return
	}
	d.cri(c, name)
	if c.version >= 3 && (!known || major > 2 || major == 2 && minor >= 1) {
		d.transfer(c, name)
	}
	d.hosts(c)
}

func (d *doctor) version(ctx context.Context) (major, minor int, known bool) {
	const check = "containerd"
	out, err := d.system.Run(ctx, "containerd", "--version")
	if errors.Is(err, exec.ErrNotFound) {
		d.report.add(Finding{
			Check: check, Status: Warning, Found: "there is no program containerd in the path",
			Meaning: "its version is not known; without containerd no image is mounted lazily but by dfctl image mount", Remedy: "if it is elsewhere, put that into PATH",
		})
		return 0, 0, false
	}
	fields := strings.Fields(out)
	if err != nil || len(fields) < 3 {
		d.report.add(Finding{Check: check, Status: Unknown, Found: fmt.Sprintf("containerd --version: %q, %v", out, err), Meaning: "its version is not known"})
		return 0, 0, false
	}
	v := strings.TrimPrefix(fields[2], "v")
	if _, err := fmt.Sscanf(v, "%d.%d", &major, &minor); err != nil {
		d.report.add(Finding{Check: check, Status: Unknown, Found: v, Meaning: "its version is not known"})
		return 0, 0, false
	}
	f := ok(check, "version %s", v)
	switch {
	case major < 1 || major == 1 && minor < 6:
		f.Status, f.Meaning, f.Remedy = Problem, "lazy images need containerd 1.6", "update containerd"
	case major == 1:
		f.Found += "; only CRI mounts images lazily, ctr does not before 2.1"
	}
	d.report.add(f)
	return major, minor, true
}

// config is containerd's configuration.
type config struct {
	version int64
	doc     map[string]any
	from    string
}

// at returns a value by its path, nil if there is none.
func (c *config) at(path ...string) any {
	var v any = c.doc
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// readConfig reads the configuration as containerd understands it or, where that
// cannot be run, its file.
func (d *doctor) readConfig(ctx context.Context) (*config, Finding) {
	const check = "containerd's config"
	c := &config{from: "containerd config dump"}
	text, err := d.system.Run(ctx, "containerd", "--config", d.config, "config", "dump")
	if err != nil {
		data, fileErr := d.system.ReadFile(d.config)
		switch {
		case errors.Is(fileErr, os.ErrPermission):
			return nil, needsRoot(check)
		case fileErr != nil:
			return nil, Finding{
				Check: check, Status: Problem, Found: fileErr.Error(),
				Meaning: "containerd does not use the snapshotter", Remedy: "make it of the one in deploy/containerd for its release, or name it by --containerd-config",
			}
		}
		text, c.from = string(data), d.config
	}
	if err := toml.Unmarshal([]byte(text), &c.doc); err != nil {
		return nil, Finding{Check: check, Status: Problem, Found: fmt.Sprintf("%s: %v", c.from, err), Meaning: "containerd does not start with it", Remedy: "correct it"}
	}
	c.version, _ = c.doc["version"].(int64)
	return c, Finding{}
}

// proxy returns the name under which containerd knows the snapshotter.
func (d *doctor) proxy(c *config) string {
	const check = "containerd's plugin"
	plugins, _ := c.at("proxy_plugins").(map[string]any)
	other := ""
	for name, v := range plugins {
		p, _ := v.(map[string]any)
		if p["type"] != "snapshot" {
			continue
		}
		if address, _ := p["address"].(string); address == d.lazy.Socket {
			d.report.add(ok(check, "proxy_plugins.%s leads to %s", name, address))
			return name
		} else if name == "damselfly" {
			other = address
		}
	}
	f := Finding{
		Check: check, Status: Problem, Found: "no proxy plugin of " + c.from + " leads to " + d.lazy.Socket,
		Meaning: "containerd does not know the snapshotter", Remedy: "add what deploy/containerd has for its release, and restart containerd",
	}
	if other != "" {
		f.Found = fmt.Sprintf("proxy_plugins.damselfly leads to %s, not to %s", other, d.lazy.Socket)
		f.Remedy = "make its address that of the snapshotter, and restart containerd; or name the right socket by --snapshotter"
	}
	d.report.add(f)
	return ""
}

// cri looks at what Kubernetes' pulls use.
func (d *doctor) cri(c *config, name string) {
	const check = "containerd's CRI"
	path := []string{"plugins", "io.containerd.grpc.v1.cri", "containerd"}
	if c.version >= 3 {
		path = []string{"plugins", "io.containerd.cri.v1.images"}
	}
	section := fmt.Sprintf("[plugins.%q%s]", path[1], strings.Join(append([]string{""}, path[2:]...), "."))
	s, _ := c.at(append(path, "snapshotter")...).(string)
	if s != name {
		d.report.add(Finding{
			Check: check, Status: Warning, Found: fmt.Sprintf("its snapshotter is %q, not %q", s, name),
			Meaning: "pods' images are not mounted lazily, unless their runtime class says so", Remedy: fmt.Sprintf("set snapshotter = %q in %s, and restart containerd", name, section),
		})
		return
	}
	// The default is true.
	if off, isSet := c.at(append(path, "disable_snapshot_annotations")...).(bool); off || !isSet {
		d.report.add(Finding{
			Check: check, Status: Problem, Found: "disable_snapshot_annotations is not false",
			Meaning: "the snapshotter is not told which image a layer is of: none is mounted lazily", Remedy: "set disable_snapshot_annotations = false in " + section + ", and restart containerd",
		})
		return
	}
	d.report.add(ok(check, "uses %s, and tells it the images", name))
}

// transfer looks at what ctr's pulls use.
func (d *doctor) transfer(c *config, name string) {
	const check = "containerd's transfer"
	if v := c.at("proxy_plugins", name, "exports", "enable_remote_snapshot_annotations"); v != "true" {
		d.report.add(Finding{
			Check: check, Status: Warning, Found: "proxy_plugins." + name + ".exports has no enable_remote_snapshot_annotations = \"true\"",
			Meaning: "what ctr and the transfer service pull is not mounted lazily", Remedy: "add it, as deploy/containerd/containerd-2.toml has it, and restart containerd",
		})
		return
	}
	d.report.add(ok(check, "tells %s the images", name))
}

// hosts looks whether pulls go through dfdaemon.
func (d *doctor) hosts(c *config) {
	const check = "containerd's mirrors"
	path := []string{"plugins", "io.containerd.grpc.v1.cri", "registry", "config_path"}
	if c.version >= 3 {
		path = []string{"plugins", "io.containerd.cri.v1.images", "registry", "config_path"}
	}
	dirs, _ := c.at(path...).(string)
	meaning := "ordinary images are pulled from the registries directly, and dfdaemon is not shown the credentials that it needs for private lazy images"
	if dirs == "" {
		d.report.add(Finding{Check: check, Status: Warning, Found: "config_path is not set", Meaning: meaning, Remedy: "sudo dfctl node setup, and restart containerd"})
		return
	}
	var leading []string
	for dir := range strings.SplitSeq(dirs, ":") {
		files, _ := filepath.Glob(filepath.Join(dir, "*", "hosts.toml")) // the pattern is right
		for _, file := range files {
			data, err := d.system.ReadFile(file)
			if errors.Is(err, os.ErrPermission) {
				d.report.add(needsRoot(check))
				return
			}
			if err == nil && strings.Contains(string(data), strconv.Quote("http://"+d.mirror)) {
				leading = append(leading, filepath.Base(filepath.Dir(file)))
			}
		}
	}
	if len(leading) == 0 {
		d.report.add(Finding{
			Check: check, Status: Warning, Found: fmt.Sprintf("no hosts.toml in %s leads to http://%s", dirs, d.mirror), Meaning: meaning,
			Remedy: "sudo dfctl node setup; or name dfdaemon's mirror by --mirror",
		})
		return
	}
	d.report.add(ok(check, "%s lead to %s", strings.Join(leading, ", "), d.mirror))
}
