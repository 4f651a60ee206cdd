package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/perf/internal/coldcache"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/ownership"
)

const (
	// registryName is what references name; only hosts.toml knows where it is.
	registryName = "registry.test"
	registryPort = "5000"

	registryHost  = "registry"
	supernodeHost = "supernode"
)

var nodeHosts = []string{"node1", "node2"}

// site is what lasts through all starts: the lab, the programs, and the registry
// with the images.
type site struct {
	o          *options
	dir        string
	lab        *netlab.Lab
	containerd containerdbuild.Programs
	images     []*image
	registry   *fleet.Process
	trust      string // the nodes' policy, a file
	starts     int    // that have begun
	kept       bool   // what a failed start has left, and with it dir
}

// openSite builds what is measured and fills the registry. close undoes it.
func openSite(ctx context.Context, o *options) (_ *site, err error) {
	if os.Geteuid() != 0 {
		return nil, netlab.ErrNotRoot
	}
	s := &site{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.dir, err = ownership.TempDir(o.dir, "cold"); err != nil {
		return nil, err
	}
	if err = s.build(ctx); err != nil {
		return nil, err
	}
	for _, name := range o.images {
		img, err := o.openImage(ctx, name)
		if err != nil {
			return nil, err
		}
		s.images = append(s.images, img)
	}
	hosts := []netlab.HostSpec{{Name: registryHost}, {Name: supernodeHost}}
	for _, name := range nodeHosts {
		hosts = append(hosts, netlab.HostSpec{Name: name})
	}
	if s.lab, err = netlab.Up(ctx, netlab.Options{Rate: o.rate, Hosts: hosts}); err != nil {
		return nil, err
	}
	return s, s.openRegistry(ctx)
}

func (s *site) build(ctx context.Context) (err error) {
	s.o.log("building containerd %s", s.o.containerd)
	if s.containerd, err = containerdbuild.Build(ctx, s.o.containerd); err != nil || !s.o.lazy() {
		return err
	}
	s.o.log("building Damselfly")
	if err := os.Mkdir(s.path("bin"), 0o755); err != nil {
		return err
	}
	return fleet.Build(ctx, s.path("bin"), fleet.Supernode, fleet.Dfdaemon, fleet.Snapshotter, "dfctl")
}

func (s *site) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *site) program(name string) string { return s.path("bin", name) }

// at returns the address of a port of a host.
func (s *site) at(host, port string) string {
	return s.lab.Host(host).Address().String() + ":" + port
}

const registryConfig = `version: 0.1
log: {accesslog: {disabled: true}, level: error}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: "0.0.0.0:` + registryPort + `"}
`

// openRegistry starts the registry and pushes the images, with their indexes.
func (s *site) openRegistry(ctx context.Context) (err error) {
	config := s.path("registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, s.path("registry")), 0o600); err != nil {
		return err
	}
	s.registry, err = fleet.Start(ctx, s.lab.Host(registryHost), "docker-registry", s.path("registry.log"), "docker-registry", "serve", config)
	if err != nil {
		return err
	}
	if err := fleet.AwaitReady(ctx, s.lab.Host(registryHost), s.registry, "http://127.0.0.1:"+registryPort+"/"); err != nil {
		return err
	}
	if err := s.makeKey(ctx); err != nil {
		return err
	}
	for _, img := range s.images {
		if err := s.push(ctx, img); err != nil {
			return fmt.Errorf("push %s: %w", img.name, err)
		}
	}
	return nil
}

// local is an image's reference on the registry's host, where its name is a
// loopback address.
func local(img *image, tag string) string {
	return "127.0.0.1:" + registryPort + "/" + img.name + ":" + tag
}

func (s *site) push(ctx context.Context, img *image) error {
	s.o.log("pushing %s", img.name)
	if err := s.copyImage(ctx, "oci:"+img.layout+":latest", local(img, "latest")); err != nil {
		return err
	}
	if slices.Contains(s.o.with, stargz) {
		archive, err := s.estargz(ctx, img)
		if err != nil {
			return err
		}
		if err := s.copyImage(ctx, "oci-archive:"+archive, local(img, "estargz")); err != nil {
			return err
		}
	}
	if !s.o.lazy() {
		return nil
	}
	s.o.log("making the index of %s", img.name)
	return quietly(s.lab.Host(registryHost).Command(ctx, s.program("dfctl"), "image", "convert", local(img, "latest"), "--key", s.path("key.pem")))
}

func (s *site) copyImage(ctx context.Context, from, to string) error {
	return quietly(s.lab.Host(registryHost).Command(ctx, "skopeo", "copy", "--quiet", "--dest-tls-verify=false", from, "docker://"+to))
}

// makeKey makes the key that signs the indexes, and the policy by which nodes trust
// it.
func (s *site) makeKey(ctx context.Context) error {
	if !s.o.lazy() {
		return nil
	}
	public := s.path("public.pem")
	for _, args := range [][]string{
		{"create", "--out", s.path("key.pem")},
		{"export", "--key", s.path("key.pem"), "--out", public},
	} {
		if err := quietly(exec.CommandContext(ctx, s.program("dfctl"), append([]string{"key"}, args...)...)); err != nil {
			return err
		}
	}
	s.trust = s.path("trust.yaml")
	return os.WriteFile(s.trust, fmt.Appendf(nil, "keys: [%q]\n", public), 0o644) // #nosec G306 -- nothing secret
}

// quietly runs a command; what it printed is in the error if it fails.
func quietly(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}

// close ends the registry and removes lab and data.
func (s *site) close(ctx context.Context) error {
	if s.registry != nil {
		s.registry.Kill()
	}
	var errs []error
	if s.lab != nil {
		errs = append(errs, s.lab.Close(ctx))
	}
	if s.dir != "" && !s.kept {
		errs = append(errs, wipe(s.dir))
	}
	return errors.Join(errs...)
}

// wipe removes a directory with what is mounted in it.
func wipe(dir string) error {
	if err := coldcache.Unmount(dir); err != nil {
		return err // what is mounted must not be emptied
	}
	return os.RemoveAll(dir)
}
