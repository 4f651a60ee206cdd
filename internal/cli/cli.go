// Package cli turns a cobra command tree into a process.
//
// Main is the last line of every main function: it owns the signals, standard
// error and the exit code, and nothing below it exits. SIGINT and SIGTERM end
// the command's context; a second one kills the process in the ordinary way.
// A command that returns nil after that, as a daemon does, has exit code 0.
//
// Exit codes: 0 success, 1 failure, 2 wrong use (unknown command or flag, bad
// flag value or argument, or an error made by Usagef), 130 interrupted. An error
// with a method ExitCode() int chooses its own.
//
// An error is one "error: …" on standard error, without the usage text; after
// wrong use a line says where the help is.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/internal/telemetry"
)

// Exit codes of all binaries.
const (
	ExitOK          = 0
	ExitFailure     = 1
	ExitUsage       = 2
	ExitInterrupted = 130
)

// Main runs the command that newRoot builds with the process's arguments and
// exits. It does not return.
func Main(newRoot func() *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end; from then on the default
	// action applies again, so that a second one always ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(Run(ctx, newRoot(), os.Args[1:]))
}

// Run executes root with args until it returns, prints its error to root's
// error stream and returns the exit code. The end of ctx is an interruption.
func Run(ctx context.Context, root *cobra.Command, args []string) int {
	if args == nil {
		args = []string{} // cobra takes nil for os.Args
	}
	root.SilenceErrors, root.SilenceUsage = true, true
	if root.Version == "" {
		root.Version = telemetry.Version()
	}
	t := &tracker{}
	t.watch(root)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !t.failed && !isUsage(err) {
		err = &usageError{err}
	}
	code := exitCode(ctx, err)
	report(cmd, code, err)
	return code
}

func exitCode(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return ExitOK
	case isUsage(err):
		return ExitUsage
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	var chosen interface{ ExitCode() int }
	if errors.As(err, &chosen) {
		return chosen.ExitCode()
	}
	return ExitFailure
}

func report(cmd *cobra.Command, code int, err error) {
	switch code {
	case ExitOK:
	case ExitInterrupted:
		cmd.PrintErrln("error: interrupted")
	case ExitUsage:
		cmd.PrintErrf("error: %v\nrun '%s --help' for usage\n", err, cmd.CommandPath())
	default:
		cmd.PrintErrf("error: %v\n", err)
	}
}

// usageError marks an error as wrong use of the command.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func isUsage(err error) bool {
	var u *usageError
	return errors.As(err, &u)
}

// Usagef returns an error that ends the process with ExitUsage. Commands use
// it for mistakes that only they can see, such as two flags that contradict
// each other. The format may wrap an error with %w.
func Usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// tracker tells errors of the commands from errors in how they were called:
// cobra has no type for the latter, but they alone come from outside the
// commands' functions.
type tracker struct{ failed bool }

func (t *tracker) watch(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		makeGroup(cmd)
	}
	for _, hook := range []*func(*cobra.Command, []string) error{
		&cmd.PersistentPreRunE, &cmd.PreRunE, &cmd.RunE, &cmd.PostRunE, &cmd.PersistentPostRunE,
	} {
		if run := *hook; run != nil {
			*hook = func(cmd *cobra.Command, args []string) error {
				err := run(cmd, args)
				t.failed = t.failed || err != nil
				return err
			}
		}
	}
	for _, sub := range cmd.Commands() {
		t.watch(sub)
	}
}

// makeGroup makes a command that only has subcommands show its help when
// called alone and refuse an unknown one; cobra by itself would show the help
// and succeed.
func makeGroup(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		const maxDistance = 2
		cmd.SuggestionsMinimumDistance = maxDistance
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return fmt.Errorf("unknown command %q for %q (did you mean %q?)", args[0], cmd.CommandPath(), near[0])
		}
		return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}
