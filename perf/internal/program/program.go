// Package program is the frame of the programs in perf: signals, errors and
// exit codes. A first interrupt ends the context, a second the process. Exit
// codes are 0 for success and -help, 2 for wrong arguments, 130 after an
// interrupt and 1 for everything else.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// ErrUsage is returned for wrong arguments, which have been reported.
var ErrUsage = errors.New("wrong use")

// Run is a program without its process.
type Run func(ctx context.Context, args []string, stdout, stderr io.Writer) error

// Main runs a program as this process and ends it.
func Main(run Run) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(ExitCode(run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
}

// ExitCode returns the exit code for an error, which it reports.
func ExitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, ErrUsage):
		return 2
	case errors.Is(err, context.Canceled):
		_, _ = fmt.Fprintln(stderr, "error: interrupted")
		return 130
	}
	_, _ = fmt.Fprintln(stderr, "error:", err)
	return 1
}
