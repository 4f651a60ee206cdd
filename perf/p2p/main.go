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

// run is the program: a benchmark, or, for the benchmark's own use, a server.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == serveCommand {
		return serve(ctx, args[1:])
	}
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	result, err := o.measure(ctx, func(format string, args ...any) {
		_, _ = fmt.Fprintf(stderr, format+"\n", args...) // there is nowhere else to report to
	})
	if err != nil {
		return err
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(result); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	var text strings.Builder
	result.table(&text)
	_, _ = io.WriteString(stderr, text.String()) // the result is out already
	return result.verdict()
}

// progress tells people what is being done, with a format as in package fmt.
type progress func(format string, args ...any)

// result is what a mode has measured.
type result interface {
	// table prints it for people.
	table(w *strings.Builder)
	// verdict is an error when something did not work that must.
	verdict() error
}

func (o options) measure(ctx context.Context, log progress) (result, error) {
	switch o.mode {
	case modeLatency:
		return measureLatency(ctx, o, log)
	case modeHit:
		return measureHit(ctx, o, log)
	case modeIdle:
		return measureIdle(ctx, o, log)
	case modeScale:
		return measureScale(ctx, o, log)
	}
	return measureDistribution(ctx, o, log)
}
