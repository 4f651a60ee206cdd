package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/config"
)

// Names of the daemons in documents and in --only.
const (
	dfdaemon    = "dfdaemon"
	snapshotter = "snapshotter"
)

// Absent is a daemon that is not running.
type Absent struct {
	Daemon string `json:"daemon"`
	Why    string `json:"why"`
}

// both asks dfdaemon and the snapshotter. One that is not running is in the
// result; that both are not is an error.
func (g *cacheGroup) both(ctx context.Context, one func(*daemon.Client) error, other func(*daemon.LazyClient) error) ([]Absent, error) {
	first := withDaemon(ctx, g.daemon, one)
	noFirst := errors.Is(first, daemon.ErrNotRunning)
	if first != nil && !noFirst {
		return nil, first
	}
	second := withSnapshotter(ctx, g.lazy, other)
	noSecond := errors.Is(second, daemon.ErrNotRunning)
	switch {
	case noFirst && noSecond:
		return nil, fmt.Errorf("%w; nor is the snapshotter: %w", first, second)
	case noFirst:
		return []Absent{{dfdaemon, first.Error()}}, second
	case noSecond:
		return []Absent{{snapshotter, second.Error()}}, nil
	}
	return []Absent{}, second
}

// withSnapshotter runs do with a connection to the snapshotter.
func withSnapshotter(ctx context.Context, target daemon.Snapshotter, do func(*daemon.LazyClient) error) error {
	c, err := target.Dial(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// Usage is what the caches take, in bytes, as -o json prints it.
type Usage struct {
	Dfdaemon    *TaskUsage   `json:"dfdaemon,omitempty"`
	Snapshotter *DeviceUsage `json:"snapshotter,omitempty"`
	Absent      []Absent     `json:"absent"`
}

// TaskUsage is what dfdaemon's cache takes.
type TaskUsage struct {
	Bytes       int64  `json:"bytes"`
	Limit       int64  `json:"limit"` // 0: none
	PinnedBytes int64  `json:"pinned_bytes"`
	Free        int64  `json:"free"` // on the disk
	Tasks       uint32 `json:"tasks"`
}

// DeviceUsage is what the content of lazy images takes.
type DeviceUsage struct {
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit"` // 0: none
	// MountedBytes cannot be evicted.
	MountedBytes int64  `json:"mounted_bytes"`
	Free         int64  `json:"free"` // on the disk
	Devices      uint32 `json:"devices"`
}

func (g *cacheGroup) usageCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "usage",
		Short: "Show how much disk space the caches take",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := g.usage(cmd.Context())
			if err != nil {
				return err
			}
			return g.console.Print(g.format, u, u.write)
		},
	}
}

func (g *cacheGroup) usage(ctx context.Context) (u *Usage, err error) {
	u = &Usage{}
	u.Absent, err = g.both(ctx, func(c *daemon.Client) error {
		r, err := c.CacheUsage(ctx, &apiv1.CacheUsageRequest{})
		if err == nil {
			u.Dfdaemon = &TaskUsage{Bytes: r.Bytes, Limit: r.Limit, PinnedBytes: r.PinnedBytes, Free: r.Free, Tasks: r.Tasks}
		}
		return c.Explain(ctx, "read the usage of dfdaemon's cache", err)
	}, func(c *daemon.LazyClient) error {
		r, err := c.DeviceUsage(ctx, &apiv1.DeviceUsageRequest{})
		if err == nil {
			u.Snapshotter = &DeviceUsage{Bytes: r.Bytes, Limit: r.Limit, MountedBytes: r.UsedBytes, Free: r.Free, Devices: r.Devices}
		}
		return c.Explain(ctx, "read the usage of the snapshotter's cache", err)
	})
	return u, err
}

func (u *Usage) write(w io.Writer) error {
	table := output.NewTable("CACHE", "USED", "BY", "NOT EVICTED", "LIMIT", "FREE ON DISK")
	if x := u.Dfdaemon; x != nil {
		table.Add(dfdaemon, output.Bytes(x.Bytes), output.Count(int(x.Tasks), "task"), output.Bytes(x.PinnedBytes)+" pinned", limit(x.Bytes, x.Limit), output.Bytes(x.Free))
	}
	if x := u.Snapshotter; x != nil {
		table.Add(snapshotter, output.Bytes(x.Bytes), output.Count(int(x.Devices), "device"), output.Bytes(x.MountedBytes)+" mounted", limit(x.Bytes, x.Limit), output.Bytes(x.Free))
	}
	if err := table.Write(w); err != nil {
		return err
	}
	return writeAbsent(w, u.Absent)
}

func limit(used, limit int64) string {
	if limit <= 0 {
		return "none"
	}
	return fmt.Sprintf("%s (%d%% used)", output.Bytes(limit), output.Percent(used, limit))
}

func writeAbsent(w io.Writer, absent []Absent) error {
	for _, a := range absent {
		if _, err := fmt.Fprintln(w, output.Clean(a.Why)); err != nil {
			return err
		}
	}
	return nil
}

// Pruned is what prune has evicted, as -o json prints it.
type Pruned struct {
	FreedBytes int64 `json:"freed_bytes"` // in all
	// Removed are the tasks of dfdaemon that were evicted, and Devices is the
	// number of devices of the snapshotter that were removed whole.
	Removed []string `json:"removed"`
	Devices uint32   `json:"devices"`
	Absent  []Absent `json:"absent"`
}

func (g *cacheGroup) pruneCommand() *cobra.Command {
	var to, only string
	cmd := &cobra.Command{
		Use:   "prune --to SIZE",
		Short: "Evict what is neither used nor pinned, oldest first, until each cache has at most SIZE",
		Long: `Evict what is neither used nor pinned, nor mounted, the least recently used first,
until dfdaemon's cache and the snapshotter's have at most SIZE each.`,
		Example: `  dfctl cache prune --to 50GiB
  dfctl cache prune --to 0 --only snapshotter`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			size, err := config.ParseSize(to)
			if err != nil {
				return cli.Usagef("--to: %w", err)
			}
			if only != "" && only != dfdaemon && only != snapshotter {
				return cli.Usagef("--only %q: use dfdaemon or snapshotter", only)
			}
			p, err := g.prune(cmd.Context(), int64(size), only)
			if err != nil {
				return err
			}
			return g.console.Print(g.format, p, p.write)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`SIZE` to shrink each cache to, such as 50GiB")
	cmd.Flags().StringVar(&only, "only", "", "shrink only the cache of dfdaemon, or of the snapshotter")
	if err := cmd.MarkFlagRequired("to"); err != nil {
		// Only a misspelt flag name gets here; the command then says so.
		cmd.PreRunE = func(*cobra.Command, []string) error { return err }
	}
	return cmd
}

func (g *cacheGroup) prune(ctx context.Context, size int64, only string) (*Pruned, error) {
	p := &Pruned{Removed: []string{}, Absent: []Absent{}}
	tasks := func(c *daemon.Client) error {
		r, err := c.CachePrune(ctx, &apiv1.CachePruneRequest{TargetBytes: size})
		if err == nil {
			p.FreedBytes += r.FreedBytes
			p.Removed = append(p.Removed, r.Removed...)
		}
		return c.Explain(ctx, "prune dfdaemon's cache", err)
	}
	devices := func(c *daemon.LazyClient) error {
		r, err := c.PruneDevices(ctx, &apiv1.PruneDevicesRequest{TargetBytes: size})
		if err == nil {
			p.FreedBytes += r.FreedBytes
			p.Devices = r.Devices
		}
		return c.Explain(ctx, "prune the snapshotter's cache", err)
	}
	var err error
	switch only {
	case dfdaemon:
		err = withDaemon(ctx, g.daemon, tasks)
	case snapshotter:
		err = withSnapshotter(ctx, g.lazy, devices)
	default:
		p.Absent, err = g.both(ctx, tasks, devices)
	}
	return p, err
}

func (p *Pruned) write(w io.Writer) error {
	for _, id := range p.Removed {
		if _, err := fmt.Fprintf(w, "removed %s\n", output.Clean(id)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "freed %s: %s and %s removed\n", output.Bytes(p.FreedBytes), output.Count(len(p.Removed), "task"), output.Count(int(p.Devices), "device"))
	if err != nil {
		return err
	}
	return writeAbsent(w, p.Absent)
}
