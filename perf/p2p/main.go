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
	"strings"
	"syscall"
)

// errUsage is returned for wrong arguments, which have been reported.
var errUsage = errors.New("wrong use")

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
