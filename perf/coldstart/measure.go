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
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/coldcache"
	"github.com/damselfly-io/damselfly/perf/internal/containerd"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
)

// start is one cold start of a container. Times are in seconds.
type start struct {
	// Pull is the time from the start of ctr images pull to its end, Run from the
	// start of ctr run to the first byte of output, Total from the beginning of
	// the one to the end of the other.
	Pull  float64 `json:"pull_seconds"`
	Run   float64 `json:"run_seconds"`
	Total float64 `json:"total_seconds"`
	// Warm is Run of a second container right afterwards.
	Warm float64 `json:"warm_run_seconds"`
	// Bytes of frames that the registry had sent and the node had received when
	// the command had ended.
	RegistryBytes int64 `json:"registry_sent_bytes"`
	NodeBytes     int64 `json:"node_received_bytes"`
	// Waits are the reads that had to wait for content of a lazy image, both runs
	// together, WaitSeconds what they waited; readers wait at the same time.
	Waits       int64   `json:"waits,omitempty"`
	WaitSeconds float64 `json:"wait_seconds,omitempty"`
}

// measure is the benchmark.
func measure(ctx context.Context, o *options) (_ *result, err error) {
	s, err := openSite(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	r := newResult(s)
	for round := range o.repeat {
		for _, img := range s.images {
			for _, c := range img.commands {
				for i := range o.with {
					with := o.with[(i+round)%len(o.with)] // none is always the first
					if err := s.measure(ctx, r, with, img, c); err != nil {
						return nil, fmt.Errorf("%s: %s with %s: %w", img.name, c.name, with, err)
					}
				}
			}
		}
	}
	return r, nil
}

// measure measures a cold start of each kind that a contender has.
func (s *site) measure(ctx context.Context, r *result, with string, img *image, c command) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.o.timeout, fmt.Errorf("not done within %v", s.o.timeout))
	defer cancel()
	s.starts++
	t := &trial{s: s, dir: s.path(strconv.Itoa(s.starts)), img: img, command: c}
	t.report = func(kind string, st start) {
		s.o.log("%-7s %-16s %-28s pull %6.3f s, run %6.3f s, total %6.3f s, warm %.3f s; %.1f MB from the registry, %.1f MB to the node; %d waits of %.3f s in all",
			img.name, c.name, kind, st.Pull, st.Run, st.Total, st.Warm, float64(st.RegistryBytes)/mb, float64(st.NodeBytes)/mb, st.Waits, st.WaitSeconds)
		r.add(img, c, kind, st)
	}
	defer func() {
		if err != nil && s.o.keep && !errors.Is(ctx.Err(), context.Canceled) {
			s.kept = true
			err = errors.Join(fmt.Errorf("kept %s: %w", t.dir, err), coldcache.Unmount(t.dir))
			return
		}
		err = errors.Join(err, wipe(t.dir))
	}()
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return err
	}
	switch with {
	case overlayfs:
		err = t.overlayfs(ctx)
	case stargz:
		err = t.stargz(ctx)
	default:
		err = t.damselfly(ctx, with)
	}
	if err != nil && context.Cause(ctx) != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

// trial is what one contender does for one command.
type trial struct {
	s       *site
	dir     string
	img     *image
	command command
	report  func(kind string, st start)
}

func (t *trial) path(elem ...string) string {
	return filepath.Join(append([]string{t.dir}, elem...)...)
}

// containerd starts a node's containerd.
func (t *trial) containerd(ctx context.Context, host, endpoint string, sn *containerd.Snapshotter) (*containerd.Daemon, error) {
	return containerd.Start(ctx, containerd.Options{
		Host: t.s.lab.Host(host), Programs: t.s.containerd, Dir: t.path(host, "c"),
		Registry: registryName, Endpoint: endpoint, Snapshotter: sn,
	})
}

// start measures one cold start.
func (t *trial) start(ctx context.Context, host string, d *containerd.Daemon, ref string) (start, error) {
	if err := t.s.cool(ctx); err != nil {
		return start{}, err
	}
	before, err := t.s.counters(ctx, host)
	if err != nil {
		return start{}, err
	}
	begin := time.Now()
	if err := d.Pull(ctx, ref); err != nil {
		return start{}, err
	}
	pulled := time.Since(begin)
	cold, err := t.run(ctx, d, ref, "cold")
	if err != nil {
		return start{}, err
	}
	after, err := t.s.counters(ctx, host)
	if err != nil {
		return start{}, err
	}
	warm, err := t.run(ctx, d, ref, "warm")
	if err != nil {
		return start{}, err
	}
	return start{
		Pull: pulled.Seconds(), Run: cold.Seconds(), Total: (pulled + cold).Seconds(), Warm: warm.Seconds(),
		RegistryBytes: after.registry.Sub(before.registry).SentBytes,
		NodeBytes:     after.node.Sub(before.node).ReceivedBytes,
	}, nil
}

// run runs the command and checks what it prints.
func (t *trial) run(ctx context.Context, d *containerd.Daemon, ref, id string) (time.Duration, error) {
	ran, err := d.Run(ctx, ref, id, t.command.args)
	if err == nil && !strings.HasPrefix(ran.Output, t.command.want) {
		err = fmt.Errorf("the %s container printed %q, want %q", id, ran.Output, t.command.want)
	}
	return ran.First, err
}

// counters of the registry and of a node.
type counters struct{ registry, node netlab.Counters }

func (s *site) counters(ctx context.Context, host string) (c counters, err error) {
	if c.registry, err = s.lab.Host(registryHost).Counters(ctx); err != nil {
		return c, err
	}
	c.node, err = s.lab.Host(host).Counters(ctx)
	return c, err
}

// cool makes the machine forget all files but those that are in use on every node
// at all times, and the registry's, which has other users.
func (s *site) cool(ctx context.Context) error {
	if err := coldcache.Drop(); err != nil {
		return err
	}
	warm := []string{s.containerd.Dir, s.path("registry")}
	if s.o.lazy() {
		warm = append(warm, s.path("bin"))
	}
	if s.o.stargz != "" {
		warm = append(warm, s.o.stargz)
	}
	if err := coldcache.Warm(warm...); err != nil {
		return err
	}
	// With the libraries that they load.
	for _, args := range [][]string{{"runc", "--version"}, {"nsenter", "--version"}, {"docker-registry", "--version"}} {
		if err := quietly(exec.CommandContext(ctx, args[0], args[1:]...)); err != nil { // #nosec G204 -- the list above
			return err
		}
	}
	return nil
}
