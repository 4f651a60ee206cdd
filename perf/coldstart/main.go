package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/damselfly-io/damselfly/perf/internal/program"
)

func main() { program.Main(run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	r, err := measure(ctx, o)
	if ctx.Err() != nil {
		return ctx.Err() // whatever it made fail
	}
	if err != nil {
		return err
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	var text strings.Builder
	r.table(&text)
	_, _ = io.WriteString(stderr, text.String()) // the result is out already
	if o.plots == "" {
		return nil
	}
	return drawStarts(o.plots, "png", r)
}
