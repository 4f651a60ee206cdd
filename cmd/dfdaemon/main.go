// Command dfdaemon runs the Damselfly daemon of a node: registry mirror, file
// proxy, download engine and piece server.
package main

import (
	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
)

func main() { cli.Main(newCommand) }

func newCommand() *cobra.Command {
	return cli.Daemon[dfdaemon.Config]{
		Use:   "dfdaemon",
		Short: "Run the Damselfly daemon of a node",
		Long: "Run the Damselfly daemon of a node: container runtimes and downloads go through it, and it\n" +
			"fetches from other nodes and passes on to them.",
		Log: func(c *dfdaemon.Config) config.Log { return c.Log },
		Run: dfdaemon.Run,
	}.Command()
}
