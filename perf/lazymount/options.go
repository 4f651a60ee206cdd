package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

// Backends, as -backends names them.
const (
	erofs = "erofs"
	fuse  = "fuse"
)

// options are the command line.
type options struct {
	modes, backends []string
	image           string
	rate            netlab.Rate
	repeat          int
	containers      int
	mounts          int
	timeout         time.Duration
	work, dir       string
	profiles        string
	keep            bool
	log             func(string, ...any)
}

func modeNames() []string {
	var names []string
	for _, m := range modes {
		names = append(names, m.name)
	}
	return names
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	begin := time.Now()
	o := &options{rate: 1e9, log: func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, "%5.0f s  "+format+"\n", append([]any{time.Since(begin).Seconds()}, args...)...) // there is nowhere else to report to
	}}
	all := modeNames()
	var names, backends string
	fs := flag.NewFlagSet("lazymount", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&names, "mode", strings.Join(all, ","), "what to measure, separated by commas")
	fs.StringVar(&backends, "backends", erofs+","+fuse, "backends, separated by commas")
	fs.StringVar(&o.image, "image", "golang", "image: golang, node or python; or NAME=DIR for one that is in the OCI layout DIR, tag latest")
	fs.Var(&o.rate, "rate", "capacity of each host's link in each direction where links are shaped, as for tc: 200mbit, 1gbit")
	fs.IntVar(&o.repeat, "repeat", 5, "repetitions; medians are reported")
	fs.IntVar(&o.containers, "containers", 100, "containers that are started at once")
	fs.IntVar(&o.mounts, "mounts", 500, "mounts of which the cost is measured")
	fs.DurationVar(&o.timeout, "timeout", 10*time.Minute, "longest time for one repetition")
	fs.StringVar(&o.work, "work", ".perf", "directory where images are kept")
	fs.StringVar(&o.dir, "dir", "", "directory on ext4, with a short path, for the nodes' data (default: the system's temporary directory)")
	fs.StringVar(&o.profiles, "profile", "", "directory for CPU profiles of the daemons while an image is filled (default none)")
	fs.BoolVar(&o.keep, "keep", false, "keep data and logs")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, program.ErrUsage
	}
	o.modes, o.backends = strings.Split(names, ","), strings.Split(backends, ",")
	if wrong := o.check(all, fs.Args()); wrong != "" {
		_, _ = fmt.Fprintf(stderr, "error: %s\nrun with -h for usage\n", wrong)
		return nil, program.ErrUsage
	}
	return o, nil
}

// check returns what is wrong.
func (o *options) check(all, rest []string) string {
	if len(rest) > 0 {
		return fmt.Sprintf("unexpected argument %q", rest[0])
	}
	for _, list := range []struct {
		flag        string
		have, known []string
	}{{"mode", o.modes, all}, {"backends", o.backends, []string{erofs, fuse}}} {
		for i, name := range list.have {
			switch {
			case !slices.Contains(list.known, name):
				return fmt.Sprintf("-%s %q: use %s", list.flag, name, strings.Join(list.known, ", "))
			case slices.Contains(list.have[:i], name):
				return fmt.Sprintf("-%s names %s twice", list.flag, name)
			}
		}
	}
	name, _, given := strings.Cut(o.image, "=")
	switch {
	case name == "":
		return "-image needs a name"
	case !given && !slices.ContainsFunc(debimage.Images(), func(img debimage.Image) bool { return img.Name == name }):
		return fmt.Sprintf("-image %q: no such image is known", name)
	case o.rate == 0:
		return "-rate must limit"
	case o.repeat < 1 || o.containers < 1 || o.mounts < 1:
		return "-repeat, -containers and -mounts: at least 1"
	case o.timeout <= 0:
		return "-timeout must be positive"
	}
	return ""
}
