package inspect

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/task"
)

// listCluster prints the tasks that the supernode knows.
func (g *taskGroup) listCluster(ctx context.Context) error {
	client, err := g.cluster.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	tasks, err := client.Tasks(ctx)
	if err != nil {
		return err
	}
	document := struct {
		Tasks []cluster.Task `json:"tasks"`
	}{append([]cluster.Task{}, tasks...)}
	return g.console.Print(g.format, document, func(w io.Writer) error {
		table := output.NewTable("TASK", "SIZE", "SUPERNODE", "NODES", "LAST USED", "SOURCE")
		for i := range tasks {
			t := &tasks[i]
			c := t.Cached
			if c == nil {
				table.Add(task.ID(t.ID).Short(), "", "", fmt.Sprint(t.HolderCount), "", "")
				continue
			}
			table.Add(task.ID(t.ID).Short(), output.Bytes(c.Size), held(c.HeldBytes, c.Size), fmt.Sprint(t.HolderCount),
				output.Ago(g.console.Now(), c.LastAccess), c.Source)
		}
		return table.Write(w)
	})
}

// showCluster prints one task that the supernode knows.
func (g *taskGroup) showCluster(ctx context.Context, name string) error {
	client, err := g.cluster.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := task.ParseID(name); err != nil {
		// Only the beginning of an ID.
		tasks, err := client.Tasks(ctx)
		if err != nil {
			return err
		}
		i, err := find(name, len(tasks), func(i int) string { return tasks[i].ID })
		if err != nil {
			return err
		}
		name = tasks[i].ID
	}
	t, err := client.Task(ctx, name)
	if err != nil {
		return err
	}
	return g.console.Print(g.format, t, func(w io.Writer) error { return g.writeClusterTask(w, t) })
}

func (g *taskGroup) writeClusterTask(w io.Writer, t *cluster.Task) error {
	fields := [][2]string{{"task", t.ID}}
	if c := t.Cached; c != nil {
		fields = append(fields,
			[2]string{"source", c.Source},
			[2]string{"size", output.Bytes(c.Size)},
			[2]string{"supernode", fmt.Sprintf("%s (%s), %d of %d pieces", output.Bytes(c.HeldBytes), held(c.HeldBytes, c.Size), c.HeldPieces, c.Pieces)},
			[2]string{"last used", output.Ago(g.console.Now(), c.LastAccess)})
	} else {
		fields = append(fields, [2]string{"supernode", "does not hold it"})
	}
	fields = append(fields, [2]string{"nodes", fmt.Sprint(t.HolderCount)})
	if err := output.WriteFields(w, fields...); err != nil || len(t.Holders) == 0 {
		return err
	}
	table := output.NewTable("NODE", "HELD")
	for _, h := range t.Holders {
		table.Add(h.Name, output.Bytes(h.HeldBytes))
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return table.Write(w)
}

// PeerCommand returns dfctl peer.
func PeerCommand(console *output.Console) *cobra.Command {
	var target cluster.Target
	var format output.Format
	cmd := &cobra.Command{Use: "peer", Short: "List the nodes of the cluster"}
	target.AddFlags(cmd.PersistentFlags(), console.Getenv)
	format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(&cobra.Command{
		Use:   "ls",
		Short: "List the nodes that are connected to the supernode",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := target.Client()
			if err != nil {
				return err
			}
			defer client.Close()
			peers, err := client.Peers(cmd.Context())
			if err != nil {
				return err
			}
			slices.SortFunc(peers, func(a, b cluster.Peer) int { return strings.Compare(a.Name, b.Name) })
			document := struct {
				Peers []cluster.Peer `json:"peers"`
			}{append([]cluster.Peer{}, peers...)}
			return console.Print(format, document, func(w io.Writer) error { return writePeers(w, peers) })
		},
	})
	return cmd
}

func writePeers(w io.Writer, peers []cluster.Peer) error {
	table := output.NewTable("NAME", "ZONE", "RACK", "ADDRESS", "TASKS", "STATE", "VERSION")
	for _, p := range peers {
		state := "connected"
		if p.Quarantined {
			state = "quarantined"
		}
		table.Add(p.Name, p.Zone, p.Rack, p.Address, fmt.Sprint(p.Tasks), state, p.Version)
	}
	return table.Write(w)
}
