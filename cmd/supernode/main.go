// Command supernode runs a Damselfly supernode: tracker, scheduler, CDN cache
// and preheat jobs of a cluster.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/internal/telemetry"
	"github.com/damselfly-io/damselfly/supernode"
)

func main() { cli.Main(newCommand) }

func newCommand() *cobra.Command {
	var c supernode.Config
	cmd := &cobra.Command{
		Use:   "supernode",
		Short: "Run a Damselfly supernode",
		Long: "Run a Damselfly supernode: it fetches every content from its origin once, knows which\n" +
			"node holds what, and tells the nodes' dfdaemons where to fetch from each other.",
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
		return supernode.Run(cmd.Context(), c, log)
	}
	return cmd
}
