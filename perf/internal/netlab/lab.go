package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/ownership"
)

// ErrNotRoot is returned by Up for a caller that is not root.
var ErrNotRoot = errors.New("network namespaces need root: run this as root")

// Lab is a network of hosts.
type Lab struct {
	prefix string
	zones  int
	made   []string // namespaces
	hosts  map[string]*Host
}

// Up makes a lab. If it fails nothing is left of it.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("network lab: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	for _, tool := range []string{"ip", "tc", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("network lab: %w (on Debian: apt install iproute2 util-linux)", err)
		}
	}
	if err := removeStale(ctx); err != nil {
		return nil, err
	}
	prefix, err := ownership.Prefix(kind)
	if err != nil {
		return nil, err
	}
	lab := &Lab{prefix: prefix, zones: o.zones(), hosts: map[string]*Host{}}
	if err := lab.make(ctx, o); err != nil {
		return nil, errors.Join(err, lab.Close(ctx))
	}
	return lab, nil
}

func (l *Lab) make(ctx context.Context, o Options) error {
	for _, cmd := range o.plan(l.namespace) {
		if _, err := run(ctx, cmd...); err != nil {
			return fmt.Errorf("make network lab: %w", err)
		}
		if cmd[1] == "netns" && cmd[2] == "add" {
			l.made = append(l.made, cmd[3])
		}
	}
	for i, h := range o.Hosts {
		l.hosts[h.Name] = &Host{name: h.Name, namespace: l.namespace(h.Name), addr: address(i), port: port(i), sw: l.namespace(switchName)}
	}
	return nil
}

func (l *Lab) namespace(host string) string { return l.prefix + host }

// Host returns the host of that name, nil if there is none.
func (l *Lab) Host(name string) *Host { return l.hosts[name] }

// Close removes the lab's namespaces, and with them its links. It does so even if
// ctx has ended.
func (l *Lab) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for _, ns := range l.made {
		errs = append(errs, removeNamespace(ctx, ns))
	}
	l.made = nil
	return errors.Join(errs...)
}

func removeNamespace(ctx context.Context, ns string) error {
	if _, err := run(ctx, "ip", "netns", "delete", ns); err != nil {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

func run(ctx context.Context, argv ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// Address returns the host's address on the lab's network.
func (h *Host) Address() netip.Addr { return h.addr }

// Name returns the host's name.
func (h *Host) Name() string { return h.name }
