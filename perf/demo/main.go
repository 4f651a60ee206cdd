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
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/perf/internal/ownership"
)

// errUsage is returned for wrong arguments, which have been reported.
var errUsage = errors.New("wrong use")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case ctx.Err() != nil:
		_, _ = fmt.Fprintln(os.Stderr, "error: interrupted")
		os.Exit(130)
	default:
		_, _ = fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	image     string // "" for the built one
	reference name.Reference
	json      bool
	layerSize int64 // of each built layer, uncompressed
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	var output, layer string
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.image, "image", "", "image to pull, HOST/REPO:TAG (default: one made of Go's own files)")
	fs.StringVar(&output, "o", "table", "output: table, json")
	fs.StringVar(&layer, "layer", "64MiB", "how much of Go's files to put into each of the two layers")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, errUsage
	}
	err := o.set(fs, output, layer)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "error: %v\nrun with -h for usage\n", err)
		return o, errUsage
	}
	return o, nil
}

func (o *options) set(fs *flag.FlagSet, output, layer string) (err error) {
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if output != "table" && output != "json" {
		return fmt.Errorf("-o %q: want table or json", output)
	}
	o.json = output == "json"
	size, err := config.ParseSize(layer)
	if err != nil || size < 1 {
		return fmt.Errorf("-layer %q: want a size such as 64MiB", layer)
	}
	o.layerSize = int64(size)
	if o.image != "" {
		if o.reference, err = name.ParseReference(o.image); err != nil {
			return fmt.Errorf("-image: %w", err)
		}
	}
	return nil
}

// run is the program.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	r, err := demonstrate(ctx, o, stderr)
	if err != nil {
		return err
	}
	verdict := r.judge()
	if !o.json {
		return errors.Join(verdict, r.table(stdout))
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return errors.Join(verdict, enc.Encode(r))
}

// demonstrate runs the cluster and pulls twice through every node.
func demonstrate(ctx context.Context, o options, log io.Writer) (_ *report, err error) {
	dir, err := ownership.TempDir("", "demo")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	src, err := openSource(ctx, o, dir, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	_, _ = fmt.Fprintln(log, "building and starting a supernode and three dfdaemons")
	c, err := startCluster(ctx, dir, src.allow())
	if err != nil {
		return nil, err
	}
	defer c.stop()
	r := &report{Image: src.name}
	for _, name := range []string{"cold", "warm"} {
		_, _ = fmt.Fprintf(log, "pulling through all nodes (%s)\n", name)
		p, err := c.pull(ctx, src, name)
		if err != nil {
			return nil, err
		}
		r.Pulls = append(r.Pulls, p)
	}
	return r, nil
}
