// Command snapshotter mounts container images on a node before their content has
// arrived: it is a proxy plugin of containerd. Its subcommand keeper holds the
// kernel's files over a restart.
package main

import (
	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/snapshotter"
)

func main() { cli.Main(newCommand) }

func newCommand() *cobra.Command {
	cmd := cli.Daemon[snapshotter.Config]{
		Use:   "snapshotter",
		Short: "Run the Damselfly snapshotter of a node",
		Long: "Run the Damselfly snapshotter of a node: containerd gives it the layers of images, and it mounts\n" +
			"those that have an index at once and fetches their content as it is read.",
		Log: func(c *snapshotter.Config) config.Log { return c.Log },
		Run: snapshotter.Run,
	}.Command()
	cmd.AddCommand(cli.Daemon[snapshotter.KeeperConfig]{
		Use:   "keeper",
		Short: "Hold what the kernel needs while the snapshotter is restarted",
		Long: "Hold the kernel's files of lazy mounts, so that their readers wait while the snapshotter is\n" +
			"restarted. Run it as a service of its own, and do not restart it together with the snapshotter.",
		Log: func(c *snapshotter.KeeperConfig) config.Log { return c.Log },
		Run: snapshotter.RunKeeper,
	}.Command())
	return cmd
}
