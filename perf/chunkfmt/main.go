package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// errUsage is returned for wrong arguments, which have been reported.
var errUsage = errors.New("wrong use")

// The modes.
const (
	modeConvert  = "convert"
	modeNext     = "next"
	modeMetadata = "metadata"
	modeSweep    = "sweep"
)

var modes = []string{modeConvert, modeNext, modeMetadata, modeSweep}

// options are the command line.
type options struct {
	modes  []string
	work   string
	images []string
	repeat int
	peer   string
	plots  string

	dfctl string // the program that was built
	log   func(string, ...any)
}

// result is the document that is printed.
type result struct {
	Convert  []convertResult   `json:"convert,omitempty"`
	Next     []nextResult      `json:"next,omitempty"`
	Metadata []*metadataResult `json:"metadata,omitempty"`
	Sweep    []sweepResult     `json:"sweep,omitempty"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
}

func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	case errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintln(stderr, "error: interrupted")
		return 130
	}
	_, _ = fmt.Fprintln(stderr, "error:", err)
	return 1
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == openCommand {
		return openImage(args[1:])
	}
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	r, err := o.measure(ctx)
	if err != nil {
		return err
	}
	var text strings.Builder
	r.table(&text)
	if _, err := io.WriteString(stderr, text.String()); err != nil {
		return err
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := &options{log: func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, format+"\n", args...) // there is nowhere else to report to
	}}
	var mode, images string
	fs := flag.NewFlagSet("chunkfmt", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&mode, "mode", strings.Join(modes, ","), "what to measure, separated by commas")
	fs.StringVar(&o.work, "work", ".perf", "directory for the images, which are kept, and for what is converted")
	fs.StringVar(&images, "images", "golang", "images to convert: names of debimage, or directories of OCI layouts with tag latest, separated by commas")
	fs.IntVar(&o.repeat, "repeat", 3, "runs of each measurement; medians are reported")
	fs.StringVar(&o.peer, "peer", os.Getenv("PEER_CTR_REMOTE"), "ctr-remote to compare with; needs containerd (default $PEER_CTR_REMOTE; empty: none)")
	fs.StringVar(&o.plots, "plots", "", "directory for plots")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, errUsage
	}
	o.modes, o.images = strings.Split(mode, ","), strings.Split(images, ",")
	for _, m := range o.modes {
		if !slices.Contains(modes, m) {
			o.log("-mode %s: use one of %s", m, strings.Join(modes, ", "))
			return nil, errUsage
		}
	}
	if fs.NArg() > 0 || o.repeat < 1 {
		o.log("wrong arguments: see -help")
		return nil, errUsage
	}
	var err error
	o.work, err = filepath.Abs(o.work)
	return o, err
}

func (o *options) measure(ctx context.Context) (*result, error) {
	r := &result{}
	if slices.Contains(o.modes, modeMetadata) {
		for _, files := range []int{100_000, 1_000_000} {
			m, err := o.measureMetadata(ctx, files)
			if err != nil {
				return nil, err
			}
			r.Metadata = append(r.Metadata, m)
		}
	}
	if len(o.modes) == 1 && len(r.Metadata) > 0 {
		return r, nil
	}
	bin, err := os.MkdirTemp(o.work, "bin-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(bin) }() // a leftover in the work directory does no harm
	if err := fleet.Build(ctx, bin, "dfctl"); err != nil {
		return nil, err
	}
	o.dfctl = filepath.Join(bin, "dfctl")
	for _, name := range o.images {
		if err := o.measureImage(ctx, r, name); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
	}
	if o.plots != "" && len(r.Sweep) > 0 {
		return r, o.drawSweep(r.Sweep)
	}
	return r, nil
}

func (o *options) measureImage(ctx context.Context, r *result, name string) error {
	layout, err := o.layout(ctx, name)
	if err != nil {
		return err
	}
	for _, mode := range o.modes {
		switch mode {
		case modeConvert:
			c, err := o.compare(ctx, name, layout)
			if err != nil {
				return err
			}
			r.Convert = append(r.Convert, *c)
		case modeNext:
			n, err := o.measureNext(ctx, name, layout)
			if err != nil {
				return err
			}
			r.Next = append(r.Next, *n)
		case modeSweep:
			s, err := o.sweep(ctx, name, layout)
			if err != nil {
				return err
			}
			r.Sweep = append(r.Sweep, s...)
		}
	}
	return nil
}

// layout returns the OCI layout of an image, which is made if need be.
func (o *options) layout(ctx context.Context, name string) (string, error) {
	if _, err := os.Stat(filepath.Join(name, "index.json")); err == nil {
		return filepath.Abs(name)
	}
	for _, img := range debimage.Images() {
		if img.Name == name {
			return debimage.Make(ctx, filepath.Join(o.work, "images"), img, o.log)
		}
	}
	return "", errors.New("neither the directory of an OCI layout nor a known image")
}
