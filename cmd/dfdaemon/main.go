// Command dfdaemon runs the Damselfly daemon of a node: registry mirror, file
// proxy, download engine and piece server.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/internal/telemetry"
)

func main() { cli.Main(newCommand) }

func newCommand() *cobra.Command {
	var c dfdaemon.Config
	cmd := &cobra.Command{
		Use:   "dfdaemon",
		Short: "Run the Damselfly daemon of a node",
		Long: "Run the Damselfly daemon of a node: container runtimes and downloads go through it, and it\n" +
			"fetches from other nodes and passes on to them.",
		Args: cobra.NoArgs,
	}
	binding, err := config.Bind(cmd.Flags(), &c)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err != nil {
			return err
		}
		if err := binding.Load(binding.File()); err != nil {
			return err
		}
		log, err := telemetry.NewLogger(os.Stderr, c.Level, c.Format)
		if err != nil {
			return err
		}
		return dfdaemon.Run(cmd.Context(), c, log)
	}
	return cmd
}
