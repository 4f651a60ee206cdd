package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// site is what lasts through all modes: the programs and the registry's storage.
type site struct {
	o          *options
	dir        string
	containerd containerdbuild.Programs
	trust      string // the nodes' policy, a file
	pushed     map[string]*image
	trials     int // that have begun
}

// openSite builds what is measured. close undoes it.
func openSite(ctx context.Context, o *options) (_ *site, err error) {
	if os.Geteuid() != 0 {
		return nil, netlab.ErrNotRoot
	}
	s := &site{o: o, pushed: map[string]*image{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = ownership.TempDir(o.dir, "lazy"); err != nil {
		return nil, err
	}
	o.log("building containerd and Damselfly")
	if s.containerd, err = containerdbuild.Build(ctx, containerdbuild.V2_3); err != nil {
		return nil, err
	}
	if err = os.Mkdir(s.path("bin"), 0o755); err != nil {
		return nil, err
	}
	if err = fleet.Build(ctx, s.path("bin"), fleet.Supernode, fleet.Dfdaemon, fleet.Snapshotter, "dfctl"); err != nil {
		return nil, err
	}
	return s, s.makeKey(ctx)
}

func (s *site) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *site) program(name string) string { return s.path("bin", name) }

// makeKey makes the key that signs the indexes, and the policy by which nodes trust
// it.
func (s *site) makeKey(ctx context.Context) error {
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

func (s *site) close() error {
	if s.dir == "" || s.o.keep {
		return nil
	}
	return wipe(s.dir)
}

// wipe removes a directory with what is mounted in it.
func wipe(dir string) error {
	if err := coldcache.Unmount(dir); err != nil {
		return err // what is mounted must not be emptied
	}
	return os.RemoveAll(dir)
}

// lab is the network of a mode, with the registry in it.
type lab struct {
	*site
	net      *netlab.Lab
	rate     netlab.Rate
	registry *fleet.Process
}

const registryConfig = `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: "0.0.0.0:` + registryPort + `"}
`

// openLab makes a network and starts the registry on what it has. close undoes it.
func (s *site) openLab(ctx context.Context, rate netlab.Rate) (_ *lab, err error) {
	l := &lab{site: s, rate: rate}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(ctx))
		}
	}()
	hosts := []netlab.HostSpec{{Name: registryHost}, {Name: supernodeHost}}
	for _, name := range nodeHosts {
		hosts = append(hosts, netlab.HostSpec{Name: name})
	}
	if l.net, err = netlab.Up(ctx, netlab.Options{Rate: rate, Hosts: hosts}); err != nil {
		return nil, err
	}
	config := s.path("registry.yml")
	if err = os.WriteFile(config, fmt.Appendf(nil, registryConfig, s.path("registry")), 0o600); err != nil {
		return nil, err
	}
	if l.registry, err = fleet.Start(ctx, l.net.Host(registryHost), "docker-registry", l.accessLog(), "docker-registry", "serve", config); err != nil {
		return nil, err
	}
	return l, fleet.AwaitReady(ctx, l.net.Host(registryHost), l.registry, "http://127.0.0.1:"+registryPort+"/")
}

// accessLog is where the registry says what it was asked.
func (s *site) accessLog() string { return s.path("registry.log") }

// at returns the address of a port of a host.
func (l *lab) at(host, port string) string {
	return l.net.Host(host).Address().String() + ":" + port
}

func (l *lab) close(ctx context.Context) error {
	if l.registry != nil {
		l.registry.Kill()
	}
	if l.net == nil {
		return nil
	}
	return l.net.Close(ctx)
}

// trial runs f with a directory of its own and a limit of time.
func (l *lab) trial(ctx context.Context, f func(ctx context.Context, t *trial) error) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.o.timeout, fmt.Errorf("not done within %v", l.o.timeout))
	defer cancel()
	l.trials++
	t := &trial{lab: l, dir: l.path(strconv.Itoa(l.trials))}
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return err
	}
	defer func() {
		if l.o.keep {
			err = errors.Join(err, coldcache.Unmount(t.dir))
			return
		}
		err = errors.Join(err, wipe(t.dir))
	}()
	err = f(ctx, t)
	t.close(ctx)
	if err != nil && context.Cause(ctx) != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// cool makes the machine forget all files but those that are in use on every node at
// all times, and the registry's, which has other users and whose disk is not what is
// measured.
func (l *lab) cool() error {
	if err := coldcache.Drop(); err != nil {
		return err
	}
	return coldcache.Warm(l.containerd.Dir, l.path("bin"), l.path("registry"))
}

// quietly runs a command; what it printed is in the error if it fails.
func quietly(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}
