package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

const (
	modeDistribute = "distribute"
	modeLatency    = "latency"
	modeHit        = "hit"
	modeIdle       = "idle"
	modeScale      = "scale"

	killSupernode = "supernode"
	killNode      = "node"
)

var modes = []string{modeDistribute, modeLatency, modeHit, modeIdle, modeScale}

// options are the command line.
type options struct {
	mode    string
	nodes   int
	rate    netlab.Rate
	size    config.Size
	repeat  int
	zones   int
	seed    uint64
	timeout time.Duration
	dir     string

	baseline, direct, warm, file, verify, ballast bool
	kill                                          string
	liar                                          bool
	profile                                       string

	samples int // latency, hit

	peers, tasks, perPeer int           // scale
	settle                time.Duration // scale, idle
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{rate: 1e9, size: 512 << 20}
	fs := flag.NewFlagSet("p2p", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.mode, "mode", modeDistribute, "what to measure: "+strings.Join(modes, ", "))
	fs.IntVar(&o.nodes, "nodes", 8, "number of nodes")
	fs.Var(&o.rate, "rate", "capacity of each host's link in each direction, as for tc: 200mbit, 1gbit, none")
	fs.Var((*sizeFlag)(&o.size), "size", "size of the content (scale: of each task), such as 512MiB")
	fs.IntVar(&o.repeat, "repeat", 1, "runs with fresh daemons; their median is reported")
	fs.IntVar(&o.zones, "zones", 0, "divide the nodes among this many zones")
	fs.Uint64Var(&o.seed, "seed", 1, "seed of the content")
	fs.DurationVar(&o.timeout, "timeout", 30*time.Minute, "longest time for one round of downloads")
	fs.StringVar(&o.dir, "dir", "", "directory for the daemons' data (default: the system's temporary directory)")
	fs.BoolVar(&o.baseline, "baseline", true, "measure a plain download by one node first")
	fs.BoolVar(&o.direct, "direct", false, "measure all nodes downloading straight from the origin as well")
	fs.BoolVar(&o.warm, "warm", false, "download a second time on all nodes")
	fs.BoolVar(&o.file, "file", false, "download a plain URL through the forward proxy instead of a blob")
	fs.BoolVar(&o.verify, "verify", true, "check the SHA-256 of what the clients receive")
	fs.BoolVar(&o.ballast, "ballast", false, "hand the kernel touched memory while it fills the page cache, as on a machine that does not get its memory from a host page by page")
	fs.StringVar(&o.kill, "kill", "", "kill -9 the supernode or the last node when the first client has half: supernode, node")
	fs.BoolVar(&o.liar, "liar", false, "add a peer that claims to hold everything and sends wrong bytes")
	fs.StringVar(&o.profile, "profile", "", "directory for CPU profiles of the supernode and the first node, taken during the cold downloads")
	fs.IntVar(&o.samples, "samples", 15, "latency: objects of each size; hit: downloads")
	fs.IntVar(&o.peers, "peers", 1000, "scale: connected peers")
	fs.IntVar(&o.tasks, "tasks", 100, "scale: active tasks")
	fs.IntVar(&o.perPeer, "per-peer", 10, "scale: tasks that each peer takes part in")
	fs.DurationVar(&o.settle, "settle", 10*time.Second, "scale, idle: how long to observe")
	if err := fs.Parse(args); err != nil {
		if err == flag.ErrHelp { //nolint:errorlint // returned bare by flag
			return o, err
		}
		return o, program.ErrUsage
	}
	if err := o.check(fs); err != nil {
		_, _ = fmt.Fprintf(stderr, "error: %v\nrun with -h for usage\n", err)
		return o, program.ErrUsage
	}
	return o, nil
}

// onlyIn lists the modes in which a flag means something; others: all.
var onlyIn = map[string][]string{
	"nodes": {modeDistribute, modeIdle}, "repeat": {modeDistribute}, "zones": {modeDistribute},
	"baseline": {modeDistribute}, "direct": {modeDistribute}, "warm": {modeDistribute}, "file": {modeDistribute},
	"verify": {modeDistribute}, "kill": {modeDistribute}, "profile": {modeDistribute}, "liar": {modeDistribute},
	"rate": {modeDistribute, modeLatency, modeHit}, "size": {modeDistribute, modeHit, modeScale},
	"samples": {modeLatency, modeHit}, "peers": {modeScale}, "tasks": {modeScale}, "per-peer": {modeScale},
	"settle": {modeScale, modeIdle},
}

func (o *options) check(fs *flag.FlagSet) error {
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if !slices.Contains(modes, o.mode) {
		return fmt.Errorf("-mode %q: want one of %s", o.mode, strings.Join(modes, ", "))
	}
	set := map[string]bool{}
	var err error
	fs.Visit(func(f *flag.Flag) {
		set[f.Name] = true
		if in, ok := onlyIn[f.Name]; ok && !slices.Contains(in, o.mode) {
			err = fmt.Errorf("-%s means nothing with -mode %s", f.Name, o.mode)
		}
	})
	o.defaults(set)
	switch {
	case err != nil:
		return err
	case o.nodes < 1 || o.repeat < 1 || o.samples < 1 || o.peers < 1 || o.tasks < 1 || o.zones < 0 || o.size < 1:
		return fmt.Errorf("numbers and sizes must be positive")
	case o.zones > o.nodes:
		return fmt.Errorf("-zones %d: there are only %d nodes", o.zones, o.nodes)
	case o.perPeer < 1 || o.perPeer > o.tasks:
		return fmt.Errorf("-per-peer %d: want 1 to %d, the number of tasks", o.perPeer, o.tasks)
	case o.mode == modeLatency && o.samples > maxLatencySamples:
		return fmt.Errorf("-samples %d: at most %d", o.samples, maxLatencySamples)
	case o.kill != "" && o.kill != killSupernode && o.kill != killNode:
		return fmt.Errorf("-kill %q: want supernode or node", o.kill)
	case o.kill == killNode && o.nodes < 2:
		return fmt.Errorf("-kill node needs at least 2 nodes")
	}
	return nil
}

// defaults sets what depends on the mode, unless it was given.
func (o *options) defaults(set map[string]bool) {
	switch o.mode {
	case modeLatency, modeIdle:
		if !set["nodes"] {
			o.nodes = 1
		}
	case modeHit:
		o.nodes = 1
		if !set["size"] {
			o.size = 1 << 30
		}
	case modeScale:
		if !set["size"] {
			o.size = 1 << 20
		}
	}
}

// sizeFlag is config.Size as package flag's Value.
type sizeFlag config.Size

func (s *sizeFlag) String() string { return config.Size(*s).String() }

func (s *sizeFlag) Set(text string) error {
	n, err := config.ParseSize(text)
	*s = sizeFlag(n)
	return err
}
