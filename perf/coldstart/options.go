package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

// Contenders, as -with names them.
const (
	overlayfs = "overlayfs"
	erofs     = "erofs"
	fuse      = "fuse"
	stargz    = "stargz"
)

var contenders = []string{overlayfs, erofs, fuse, stargz}

// options are the command line.
type options struct {
	images, with  []string
	containerd    containerdbuild.Release
	stargz        string // containerd-stargz-grpc
	ctrRemote     string
	rate          netlab.Rate
	repeat        int
	timeout       time.Duration
	work, dir     string
	plots         string
	keep          bool
	log           func(string, ...any)
	commandFilter string
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	begin := time.Now()
	o := &options{rate: 1e9, log: func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, "%5.0f s  "+format+"\n", append([]any{time.Since(begin).Seconds()}, args...)...) // there is nowhere else to report to
	}}
	var images, with string
	fs := flag.NewFlagSet("coldstart", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&images, "images", "golang,node,python", "images to start, separated by commas: golang, node, python; or NAME=DIR for one that is in the OCI layout DIR, tag latest")
	fs.StringVar(&with, "with", "", "contenders, separated by commas: "+strings.Join(contenders, ", ")+" (default overlayfs,erofs, and stargz if -stargz is given)")
	fs.StringVar((*string)(&o.containerd), "containerd", string(containerdbuild.V2_3), "release of containerd: 2.3, 2.4")
	fs.StringVar(&o.commandFilter, "command", "", "measure only commands whose name contains this (default all)")
	fs.StringVar(&o.stargz, "stargz", "", "containerd-stargz-grpc to compare with (default none)")
	fs.StringVar(&o.ctrRemote, "ctr-remote", "ctr-remote", "ctr-remote that makes eStargz images for -stargz, once")
	fs.Var(&o.rate, "rate", "capacity of each host's link in each direction, as for tc: 200mbit, 1gbit, none")
	fs.IntVar(&o.repeat, "repeat", 5, "cold starts of each kind; medians are reported")
	fs.DurationVar(&o.timeout, "timeout", 5*time.Minute, "longest time for one cold start")
	fs.StringVar(&o.work, "work", ".perf", "directory where images are kept")
	fs.StringVar(&o.dir, "dir", "", "directory on ext4 or xfs, with a short path, for the nodes' data (default: the system's temporary directory)")
	fs.StringVar(&o.plots, "plots", "", "directory for plots (default none)")
	fs.BoolVar(&o.keep, "keep", false, "keep the nodes' data and logs of a start that fails")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, program.ErrUsage
	}
	o.images, o.with = strings.Split(images, ","), strings.Split(with, ",")
	if with == "" {
		o.with = o.defaultContenders()
	}
	if wrong := o.check(fs.Args()); wrong != "" {
		_, _ = fmt.Fprintf(stderr, "error: %s\nrun with -h for usage\n", wrong)
		return nil, program.ErrUsage
	}
	return o, nil
}

func (o *options) defaultContenders() []string {
	if o.stargz == "" {
		return []string{overlayfs, erofs}
	}
	return []string{overlayfs, erofs, stargz}
}

// check returns what is wrong.
func (o *options) check(rest []string) string {
	if len(rest) > 0 {
		return fmt.Sprintf("unexpected argument %q", rest[0])
	}
	for i, c := range o.with {
		switch {
		case !slices.Contains(contenders, c):
			return fmt.Sprintf("-with %q: use %s", c, strings.Join(contenders, ", "))
		case slices.Contains(o.with[:i], c):
			return fmt.Sprintf("-with names %s twice", c)
		}
	}
	names := map[string]bool{}
	for _, img := range o.images {
		name, _, _ := strings.Cut(img, "=")
		switch {
		case len(o.commands(name)) == 0:
			return fmt.Sprintf("-images %q: no command is known for it, or -command leaves none", img)
		case names[name]:
			return fmt.Sprintf("-images names %s twice", name)
		}
		names[name] = true
	}
	switch {
	case o.containerd != containerdbuild.V2_3 && o.containerd != containerdbuild.V2_4:
		return fmt.Sprintf("-containerd %q: use 2.3 or 2.4", o.containerd)
	case o.repeat < 1:
		return fmt.Sprintf("-repeat %d: at least 1", o.repeat)
	case o.timeout <= 0:
		return "-timeout must be positive"
	case slices.Contains(o.with, stargz) != (o.stargz != ""):
		return "stargz among -with needs -stargz, and the other way round"
	}
	return ""
}

// commands returns those that are measured in an image.
func (o *options) commands(image string) []command {
	return slices.DeleteFunc(commandsOf(image), func(c command) bool { return !strings.Contains(c.name, o.commandFilter) })
}

// lazy tells whether Damselfly is among the contenders.
func (o *options) lazy() bool {
	return slices.Contains(o.with, erofs) || slices.Contains(o.with, fuse)
}
