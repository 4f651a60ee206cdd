package inspect

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/internal/task"
)

// cacheGroup is what the cache commands share.
type cacheGroup struct {
	console *output.Console
	daemon  daemon.Target
	format  output.Format
}

// CacheCommand returns dfctl cache.
func CacheCommand(console *output.Console) *cobra.Command {
	g := &cacheGroup{console: console}
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show and shrink what this node keeps on disk",
	}
	g.daemon.AddFlag(cmd.PersistentFlags(), console.Getenv)
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.listCommand(), g.usageCommand(), g.pruneCommand())
	return cmd
}

func (g *cacheGroup) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List what is kept, in the order in which it would be evicted",
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

// Usage is what the cache takes, in bytes, as -o json prints it.
type Usage struct {
	Bytes       int64  `json:"bytes"`
	Limit       int64  `json:"limit"` // 0: none
	PinnedBytes int64  `json:"pinned_bytes"`
	Free        int64  `json:"free"` // on the disk
	Tasks       uint32 `json:"tasks"`
}

func (g *cacheGroup) usageCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "usage",
		Short: "Show how much disk space the cache takes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withDaemon(cmd.Context(), g.daemon, func(c *daemon.Client) error {
				resp, err := c.CacheUsage(cmd.Context(), &apiv1.CacheUsageRequest{})
				if err != nil {
					return c.Explain(cmd.Context(), "read the cache's usage", err)
				}
				u := &Usage{Bytes: resp.Bytes, Limit: resp.Limit, PinnedBytes: resp.PinnedBytes, Free: resp.Free, Tasks: resp.Tasks}
				return g.console.Print(g.format, u, u.write)
			})
		},
	}
}

func (u *Usage) write(w io.Writer) error {
	limit := "none"
	if u.Limit > 0 {
		limit = fmt.Sprintf("%s (%d%% used)", output.Bytes(u.Limit), output.Percent(u.Bytes, u.Limit))
	}
	return output.WriteFields(w,
		[2]string{"used", output.Bytes(u.Bytes) + " by " + output.Count(int(u.Tasks), "task")},
		[2]string{"pinned", output.Bytes(u.PinnedBytes)},
		[2]string{"limit", limit},
		[2]string{"free on disk", output.Bytes(u.Free)},
	)
}

// Pruned is what prune has evicted, as -o json prints it.
type Pruned struct {
	FreedBytes int64    `json:"freed_bytes"`
	Removed    []string `json:"removed"` // task IDs
}

func (g *cacheGroup) pruneCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "prune --to SIZE",
		Short: "Evict what is neither used nor pinned, oldest first, until at most SIZE is kept",
		Example: `  dfctl cache prune --to 50GiB
  dfctl cache prune --to 0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			size, err := config.ParseSize(to)
			if err != nil {
				return cli.Usagef("--to: %w", err)
			}
			return withDaemon(cmd.Context(), g.daemon, func(c *daemon.Client) error {
				resp, err := c.CachePrune(cmd.Context(), &apiv1.CachePruneRequest{TargetBytes: int64(size)})
				if err != nil {
					return c.Explain(cmd.Context(), "prune the cache", err)
				}
				p := &Pruned{FreedBytes: resp.FreedBytes, Removed: append([]string{}, resp.Removed...)}
				return g.console.Print(g.format, p, p.write)
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`SIZE` to shrink the cache to, such as 50GiB")
	if err := cmd.MarkFlagRequired("to"); err != nil {
		// Only a misspelt flag name gets here; the command then says so.
		cmd.PreRunE = func(*cobra.Command, []string) error { return err }
	}
	return cmd
}

func (p *Pruned) write(w io.Writer) error {
	for _, id := range p.Removed {
		if _, err := fmt.Fprintf(w, "removed %s\n", output.Clean(id)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "freed %s from %s\n", output.Bytes(p.FreedBytes), output.Count(len(p.Removed), "task"))
	return err
}
