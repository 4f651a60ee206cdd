package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/program"
)

// The modes.
const (
	modeConvert  = "convert"
	modeNext     = "next"
	modeMetadata = "metadata"
	modeSweep    = "sweep"
)

var modes = []string{modeMetadata, modeConvert, modeNext, modeSweep}

// options are the command line.
type options struct {
	modes  []string
	work   string
	images []string
	files  int
	repeat int
	peer   string
	plots  string

	settings []setting // of the sweep
	dfctl    string    // the program that was built
	log      func(string, ...any)
}

// imageDir is where images are kept.
func (o *options) imageDir() string { return filepath.Join(o.work, "images") }

// result is the document that is printed.
type result struct {
	Metadata []metadataResult `json:"metadata,omitempty"`
	Convert  []convertResult  `json:"convert,omitempty"`
	Next     []nextResult     `json:"next,omitempty"`
	Sweep    []sweepResult    `json:"sweep,omitempty"`
}

func main() { program.Main(run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case makeCommand:
			return makeIndexes(args[1:], stdout)
		case openCommand:
			return openImage(stdout)
		}
	}
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	r, err := o.measure(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // whatever it made fail
	}
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

func parseOptions(args []string, stderr io.Writer) (options, error) {
	begin := time.Now()
	o := options{settings: settings(), log: func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, "%4.0f s  "+format+"\n", append([]any{time.Since(begin).Seconds()}, args...)...) // there is nowhere else to report to
	}}
	var mode, images string
	fs := flag.NewFlagSet("chunkfmt", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&mode, "mode", strings.Join(modes, ","), "what to measure, separated by commas")
	fs.StringVar(&o.work, "work", ".perf", "directory on a disk for the images, which are kept, and for what is converted")
	fs.StringVar(&images, "images", "golang", "images to convert, separated by commas: golang, node, python, or directories of OCI layouts with tag latest")
	fs.IntVar(&o.files, "files", 1_000_000, "files of the larger image of mode metadata; the smaller has a tenth of them")
	fs.IntVar(&o.repeat, "repeat", 3, "runs of each measurement but the sweep and the peer; medians are reported")
	fs.StringVar(&o.peer, "peer", "", "ctr-remote to compare with; needs containerd and root (default none)")
	fs.StringVar(&o.plots, "plots", "", "directory for plots of the sweep (default none)")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, program.ErrUsage
	}
	o.modes, o.images = strings.Split(mode, ","), strings.Split(images, ",")
	if fs.NArg() > 0 {
		o.log("unexpected argument %q (see -help)", fs.Arg(0))
		return o, program.ErrUsage
	}
	if wrong := o.check(); wrong != "" {
		o.log("%s (see -help)", wrong)
		return o, program.ErrUsage
	}
	return o, nil
}

// check returns what is wrong.
func (o *options) check() string {
	for _, m := range o.modes {
		if !slices.Contains(modes, m) {
			return fmt.Sprintf("-mode %q: use %s", m, strings.Join(modes, ", "))
		}
	}
	names := map[string]bool{}
	for _, img := range o.images {
		if names[shortName(img)] {
			return fmt.Sprintf("-images: two are called %s", shortName(img))
		}
		names[shortName(img)] = true
	}
	switch {
	case o.repeat < 1:
		return fmt.Sprintf("-repeat %d: at least 1", o.repeat)
	case o.files < 1000:
		return fmt.Sprintf("-files %d: at least 1000", o.files)
	}
	return ""
}

func (o *options) measure(ctx context.Context) (*result, error) {
	r := &result{}
	var err error
	if o.work, err = filepath.Abs(o.work); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.imageDir(), 0o755); err != nil { // #nosec G703 -- the user names it
		return nil, err
	}
	if slices.Contains(o.modes, modeMetadata) {
		for _, files := range []int{o.files / 10, o.files} {
			m, err := o.measureMetadata(ctx, files)
			if err != nil {
				return nil, err
			}
			r.Metadata = append(r.Metadata, *m)
		}
	}
	if !slices.ContainsFunc(o.modes, func(m string) bool { return m != modeMetadata }) {
		return r, nil
	}
	if err := o.measureImages(ctx, r); err != nil {
		return nil, err
	}
	if o.plots == "" || len(r.Sweep) == 0 {
		return r, nil
	}
	return r, drawSweep(o.plots, "svg", r.Sweep)
}
