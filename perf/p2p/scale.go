package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
	"github.com/damselfly-io/damselfly/perf/internal/ownership"
)

// scale is the result of -mode scale: what a supernode needs for many
// connected peers and active tasks. The peers are this process's: they speak
// the control plane only and finish a few pieces each.
type scale struct {
	Mode    string  `json:"mode"`
	Machine machine `json:"machine"`
	Peers   int     `json:"peers"`
	Tasks   int     `json:"tasks"`
	PerPeer int     `json:"tasks_per_peer"`
	Size    int64   `json:"task_size_bytes"`
	// Empty is the supernode alone, Connected with all peers, Active with all
	// of them in their tasks.
	Empty     phase `json:"empty"`
	Connected phase `json:"connected"`
	Active    phase `json:"active"`
	// ConnectSeconds until all peers were welcome, JoinSeconds until all had
	// the shape of all their tasks.
	ConnectSeconds float64 `json:"connect_seconds"`
	JoinSeconds    float64 `json:"join_seconds"`
}

// phase is the supernode over one period of observation.
type phase struct {
	RSS        int64   `json:"rss_bytes"`
	PeakRSS    int64   `json:"peak_rss_bytes"`
	CPUPercent float64 `json:"cpu_percent"` // of one processor
}

// observe watches a process for the given time.
func observe(ctx context.Context, p *fleet.Process, period time.Duration) (phase, error) {
	before, err := p.Use()
	if err != nil {
		return phase{}, err
	}
	timer := time.NewTimer(period)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return phase{}, ctx.Err()
	case <-timer.C:
	}
	after, err := p.Use()
	if err != nil {
		return phase{}, err
	}
	return phase{
		RSS: after.RSS, PeakRSS: after.PeakRSS,
		CPUPercent: 100 * (after.CPUSeconds - before.CPUSeconds) / period.Seconds(),
	}, nil
}

// loopback is a supernode and an origin on this machine, without a lab.
type loopback struct {
	dir, token    string
	grpc, origin  string // addresses
	supernode     *fleet.Daemon
	originProcess *fleet.Process
	objects       []string // digests
}

func openLoopback(ctx context.Context, o options, log progress, programs ...string) (_ *loopback, err error) {
	l := &loopback{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.dir, err = ownership.TempDir(o.dir, "p2p"); err != nil {
		return nil, err
	}
	log("building the daemons")
	if err = fleet.Build(ctx, l.bin(), programs...); err != nil {
		return nil, err
	}
	if l.token, err = fleet.WriteToken(l.dir); err != nil {
		return nil, err
	}
	free, err := fleet.FreeAddresses(ctx, 4)
	if err != nil {
		return nil, err
	}
	l.grpc, l.origin = free[1], free[3]
	l.supernode, err = fleet.StartSupernode(ctx, fleet.SupernodeOptions{
		Host: fleet.Local{}, Program: filepath.Join(l.bin(), fleet.Supernode), HTTP: free[0], GRPC: free[1], Peer: free[2],
		Dir: filepath.Join(l.dir, "supernode"), TokenFile: l.token,
	})
	return l, err
}

func (l *loopback) bin() string { return filepath.Join(l.dir, "bin") }

// serve makes n objects and an origin for them.
func (l *loopback) serve(ctx context.Context, n int, size int64, seed uint64) error {
	dir := filepath.Join(l.dir, "objects")
	if err := os.Mkdir(dir, 0o755); err != nil { // #nosec G703 -- made by MkdirTemp
		return fmt.Errorf("make a directory for the content: %w", err)
	}
	for i := range n {
		digest, err := objectserver.WriteObject(dir, seed+uint64(i), size) // #nosec G115 -- a count
		if err != nil {
			return err
		}
		l.objects = append(l.objects, digest)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the origin: %w", err)
	}
	l.originProcess, err = fleet.Start(ctx, fleet.Local{}, "object server", filepath.Join(l.dir, "origin.log"), exe, serveCommand, dir, l.origin)
	if err != nil {
		return err
	}
	return fleet.AwaitReady(ctx, fleet.Local{}, l.originProcess, "http://"+l.origin+"/v2/")
}

func (l *loopback) close() error {
	if l.originProcess != nil {
		l.originProcess.Kill()
	}
	if l.supernode != nil {
		l.supernode.Kill()
	}
	if l.dir == "" {
		return nil
	}
	return os.RemoveAll(l.dir) // #nosec G703 -- made by MkdirTemp
}

func measureScale(ctx context.Context, o options, log progress) (_ result, err error) {
	l, err := openLoopback(ctx, o, log, fleet.Supernode)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.serve(ctx, o.tasks, int64(o.size), o.seed); err != nil {
		return nil, err
	}
	r := &scale{Mode: o.mode, Machine: thisMachine(), Peers: o.peers, Tasks: o.tasks, PerPeer: o.perPeer, Size: int64(o.size)}
	if r.Empty, err = observe(ctx, l.supernode.Process, o.settle); err != nil {
		return nil, err
	}
	crowd := &crowd{l: l, o: o}
	defer crowd.close()
	log("connecting %d peers", o.peers)
	start := time.Now()
	if err := crowd.connect(ctx); err != nil {
		return nil, err
	}
	r.ConnectSeconds = time.Since(start).Seconds()
	if r.Connected, err = observe(ctx, l.supernode.Process, o.settle); err != nil {
		return nil, err
	}
	log("each taking part in %d of %d tasks", o.perPeer, o.tasks)
	start = time.Now()
	if err := crowd.takePart(ctx); err != nil {
		return nil, err
	}
	r.JoinSeconds = time.Since(start).Seconds()
	r.Active, err = observe(ctx, l.supernode.Process, o.settle)
	return r, err
}

// crowd is many fake peers.
type crowd struct {
	l     *loopback
	o     options
	peers []*fakePeer
	wg    sync.WaitGroup // receivers
}

func (c *crowd) connect(ctx context.Context) error {
	const atOnce = 50
	c.peers = make([]*fakePeer, c.o.peers)
	var group errgroup.Group // the peers outlive it
	group.SetLimit(atOnce)
	for i := range c.peers {
		group.Go(func() (err error) {
			name := "peer" + strconv.Itoa(i)
			// Nobody listens there: peers are told of each other, and that is all.
			c.peers[i], err = joinPeer(ctx, fleet.Local{}, c.l.grpc, c.l.token, name, "127.0.0.1:9")
			return err
		})
	}
	return group.Wait()
}

// close makes all peers leave.
func (c *crowd) close() {
	for _, p := range c.peers {
		if p != nil {
			p.leave()
		}
	}
	c.wg.Wait()
}

// takePart announces half of the pieces of its tasks for each peer and asks
// to take part, and waits until all were answered.
func (c *crowd) takePart(ctx context.Context) error {
	answered := make(chan error, len(c.peers))
	for i, p := range c.peers {
		c.wg.Go(func() { answered <- c.receive(p) })
		for k := range c.o.perPeer {
			n := (i + k*c.o.tasks/c.o.perPeer) % c.o.tasks
			if err := c.enter(p, uint64(k+1), c.l.objects[n], i); err != nil { // #nosec G115 -- a count
				return fmt.Errorf("peer %d: %w", i, err)
			}
		}
	}
	for range c.peers {
		select {
		case err := <-answered:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (c *crowd) enter(p *fakePeer, request uint64, digest string, i int) error {
	table := task.Uniform(int64(c.o.size))
	pieces := task.NewSet(table.Count())
	for n := i % 2; n < table.Count(); n += 2 {
		pieces.Add(n)
	}
	if err := p.held(digest, table, pieces); err != nil {
		return err
	}
	return p.interest(request, digest, "http://"+c.l.origin+"/v2/bench/blobs/"+digest, true)
}

// receive returns once all interests of p were answered; a goroutine of its
// own reads on until the stream ends.
func (c *crowd) receive(p *fakePeer) error {
	for answers := 0; answers < c.o.perPeer; {
		m, err := p.stream.Recv()
		if err != nil {
			return fmt.Errorf("a peer's stream ended: %w", err)
		}
		if f := m.GetFailure(); f != nil {
			return fmt.Errorf("the supernode refused a task: %s", f.Message)
		}
		if m.GetTaskInfo() != nil {
			answers++
		}
	}
	c.wg.Go(func() {
		for err := error(nil); err == nil; {
			_, err = p.stream.Recv()
		}
	})
	return nil
}

func (r *scale) verdict() error { return nil }

func (r *scale) table(w *strings.Builder) {
	row := func(name string, p phase) []string {
		return []string{name, mib(p.RSS), mib(p.PeakRSS), fmt.Sprintf("%.1f", p.CPUPercent)}
	}
	printTable(w, []string{"supernode", "RSS MiB", "peak MiB", "CPU %"}, [][]string{
		row("empty", r.Empty), row("connected", r.Connected), row("active", r.Active),
	})
	fmt.Fprintf(w, "%d peers (connected in %s s), %d tasks of %s MiB, each peer in %d (joined in %s s)\n",
		r.Peers, seconds(r.ConnectSeconds), r.Tasks, mib(r.Size), r.PerPeer, seconds(r.JoinSeconds))
}
