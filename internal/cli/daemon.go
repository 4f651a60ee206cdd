package cli

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/internal/telemetry"
)

// Daemon is the command of a program that runs until it is stopped. C is its
// configuration (see package config): flags, file and environment are read into
// it before Run is called.
type Daemon[C any] struct {
	Use, Short, Long string
	// Log returns the part of the configuration that says how to log.
	Log func(*C) config.Log
	// Run returns when ctx ends, or with an error.
	Run func(ctx context.Context, c C, log *slog.Logger) error
}

// Command returns the command. It logs to standard error.
func (d Daemon[C]) Command() *cobra.Command {
	var c C
	cmd := &cobra.Command{Use: d.Use, Short: d.Short, Long: d.Long, Args: cobra.NoArgs}
	binding, err := config.Bind(cmd.Flags(), &c)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err != nil {
			return err
		}
		if err := binding.Load(binding.File()); err != nil {
			return err
		}
		l := d.Log(&c)
		log, err := telemetry.NewLogger(os.Stderr, l.Level, l.Format)
		if err != nil {
			return err
		}
		// Whoever reads the log may end before the daemon: that must not end it.
		signal.Ignore(syscall.SIGPIPE)
		return d.Run(cmd.Context(), c, log)
	}
	return cmd
}
