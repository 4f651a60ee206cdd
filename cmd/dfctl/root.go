package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/bench"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/doctor"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/get"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/images"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/inspect"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/key"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/node"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/preheat"
	"github.com/damselfly-io/damselfly/internal/cli"
)

// dfget is the name under which the program is its get command.
const dfget = "dfget"

// run executes the command line args, which begin with the program's name, and
// returns the exit code.
func run(ctx context.Context, args []string, console *output.Console) int {
	name := "dfctl"
	if len(args) > 0 {
		name, args = filepath.Base(args[0]), args[1:]
	}
	root := newRoot(console) //nolint:contextcheck // cobra passes ctx to the commands
	if name == dfget {
		root = get.Command(console, dfget) //nolint:contextcheck // as above
	}
	root.SetIn(console.In)
	root.SetOut(console.Out)
	root.SetErr(console.Err)
	return cli.Run(ctx, root, args)
}

func newRoot(console *output.Console) *cobra.Command {
	root := &cobra.Command{
		Use:   "dfctl",
		Short: "Download, preheat and look into a Damselfly cluster",
		Long: `Download, preheat and look into a Damselfly cluster.

get, task and cache talk to this node's dfdaemon (--dfdaemon), cache also to its
snapshotter (--snapshotter), preheat and peer to the supernode (--supernode).
image needs no daemon, doctor looks at all of them. Every command prints one JSON
document with -o json.

` + exit.Summary,
		Example: `  dfctl get https://example.com/model.bin -O model.bin
  dfctl preheat image docker.io/library/nginx:1.29 --scope all_peers
  sudo dfctl doctor
  dfctl task ls
  dfctl peer ls -o json`,
	}
	root.AddCommand(
		get.Command(console, "get"),
		preheat.Command(console, preheat.Options{}),
		images.Command(console),
		inspect.TaskCommand(console),
		inspect.PeerCommand(console),
		inspect.CacheCommand(console),
		key.Command(console),
		bench.Command(console, nil),
		doctor.Command(console, doctor.System{}),
		inspect.VersionCommand(console),
		node.Command(node.Options{Out: console.Out}),
	)
	return root
}
