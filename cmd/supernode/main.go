// Command supernode runs a Damselfly supernode: tracker, scheduler, CDN cache
// and preheat jobs of a cluster.
package main

import (
	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/supernode"
)

func main() { cli.Main(newCommand) }

func newCommand() *cobra.Command {
	return cli.Daemon[supernode.Config]{
		Use:   "supernode",
		Short: "Run a Damselfly supernode",
		Long: "Run a Damselfly supernode: it fetches every content from its origin once, knows which\n" +
			"node holds what, and tells the nodes' dfdaemons where to fetch from each other.",
		Log: func(c *supernode.Config) config.Log { return c.Log },
		Run: supernode.Run,
	}.Command()
}
