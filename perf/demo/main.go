package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/perf/internal/ownership"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

func main() { program.Main(run) }

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
		return o, program.ErrUsage
	}
	err := o.set(fs, output, layer)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "error: %v\nrun with -h for usage\n", err)
		return o, program.ErrUsage
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
