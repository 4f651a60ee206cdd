package inspect

import (
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/task"
)

// cacheGroup is what the cache commands share.
type cacheGroup struct {
	console *output.Console
	daemon  daemon.Target
	lazy    daemon.Snapshotter
	format  output.Format
}

// CacheCommand returns dfctl cache.
func CacheCommand(console *output.Console) *cobra.Command {
	g := &cacheGroup{console: console}
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show, check and shrink what this node keeps on disk",
		Long: `Show, check and shrink what this node keeps on disk.

dfdaemon keeps pieces of blobs and files as they were fetched, to serve them to
other nodes too; the snapshotter keeps the decoded content of lazy images. A node
without one of the two is no error.`,
	}
	g.daemon.AddFlag(cmd.PersistentFlags(), console.Getenv)
	g.lazy.AddFlag(cmd.PersistentFlags(), console.Getenv)
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.listCommand(), g.usageCommand(), g.pruneCommand(), g.verifyCommand())
	return cmd
}

func (g *cacheGroup) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List what dfdaemon keeps, in the order in which it would be evicted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withDaemon(cmd.Context(), g.daemon, func(c *daemon.Client) error {
				tasks, err := listTasks(cmd.Context(), c)
				if err != nil {
					return err
				}
				tasks = slices.DeleteFunc(tasks, func(t Task) bool { return t.HeldBytes == 0 })
				slices.SortStableFunc(tasks, func(a, b Task) int { return lastUse(a).Compare(lastUse(b)) })
				return g.console.Print(g.format, taskList{tasks}, func(w io.Writer) error {
					return writeCache(w, g.console.Now(), tasks)
				})
			})
		},
	}
}

func lastUse(t Task) time.Time {
	if t.LastAccess == nil {
		return time.Time{}
	}
	return *t.LastAccess
}

func writeCache(w io.Writer, now time.Time, tasks []Task) error {
	table := output.NewTable("TASK", "ON DISK", "STATE", "LAST USED", "PINNED FOR", "SOURCE")
	for _, t := range tasks {
		pinned := ""
		if t.PinnedUntil != nil && t.PinnedUntil.After(now) {
			pinned = output.Duration(t.PinnedUntil.Sub(now))
		}
		table.Add(task.ID(t.ID).Short(), output.Bytes(t.HeldBytes), t.State, output.Ago(now, lastUse(t)), pinned, t.Source)
	}
	return table.Write(w)
}
