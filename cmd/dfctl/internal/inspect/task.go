package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Task is a task of this node's dfdaemon as -o json prints it.
type Task struct {
	ID          string     `json:"id"`
	Source      string     `json:"source,omitempty"`
	State       string     `json:"state"` // complete, downloading, partial or failed
	Error       string     `json:"error,omitempty"`
	Length      int64      `json:"length"` // bytes of the whole content
	HeldBytes   int64      `json:"held_bytes"`
	Pieces      uint32     `json:"pieces"`
	HeldPieces  uint32     `json:"held_pieces"`
	From        From       `json:"from"`
	ETag        string     `json:"etag,omitempty"`
	ContentType string     `json:"content_type,omitempty"`
	LastAccess  *time.Time `json:"last_access,omitempty"`
	PinnedUntil *time.Time `json:"pinned_until,omitempty"`
}

// From counts the bytes received in the current or last download, by sender.
type From struct {
	Peers     int64 `json:"peers"`
	Supernode int64 `json:"supernode"`
	Origin    int64 `json:"origin"`
}

func newTask(st *apiv1.TaskStatus) Task {
	t := Task{
		ID: st.TaskId, Source: st.Source, State: "partial", Error: st.Error,
		Length: st.GetTable().GetLength(), HeldBytes: st.HeldBytes,
		Pieces: st.Pieces, HeldPieces: st.HeldPieces,
		From: From{Peers: st.FromPeers, Supernode: st.FromSupernode, Origin: st.FromOrigin},
		ETag: st.Etag, ContentType: st.ContentType,
		LastAccess: unixTime(st.LastAccessUnix), PinnedUntil: unixTime(st.PinnedUntilUnix),
	}
	switch {
	case st.Error != "":
		t.State = "failed"
	case st.Complete:
		t.State = "complete"
	case st.Active:
		t.State = "downloading"
	}
	return t
}

func unixTime(seconds int64) *time.Time {
	if seconds <= 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

// taskGroup is what the task commands share.
type taskGroup struct {
	console *output.Console
	daemon  daemon.Target
	cluster cluster.Target
	format  output.Format
	// ofCluster asks the supernode instead of this node's dfdaemon.
	ofCluster bool
}

// TaskCommand returns dfctl task.
func TaskCommand(console *output.Console) *cobra.Command {
	g := &taskGroup{console: console}
	cmd := &cobra.Command{
		Use:   "task",
		Short: "List, show and remove tasks",
		Long: `List, show and remove tasks: the blobs and URLs that this node holds or is
downloading. With --cluster, list and show those that the supernode knows.`,
	}
	g.daemon.AddFlag(cmd.PersistentFlags(), console.Getenv)
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.listCommand(), g.showCommand(), g.removeCommand())
	return cmd
}

func (g *taskGroup) addClusterFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&g.ofCluster, "cluster", false, "ask the supernode instead of this node's dfdaemon")
	g.cluster.AddFlags(cmd.Flags(), g.console.Getenv)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !g.ofCluster && (cmd.Flags().Changed("supernode") || cmd.Flags().Changed("token-file")) {
			return cli.Usagef("--supernode and --token-file are for --cluster")
		}
		return nil
	}
}

func (g *taskGroup) listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List tasks",
		Example: "  dfctl task ls\n  dfctl task ls --cluster --supernode 10.0.0.1:8001 --token-file token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if g.ofCluster {
				return g.listCluster(cmd.Context())
			}
			return withDaemon(cmd.Context(), g.daemon, func(c *daemon.Client) error {
				tasks, err := listTasks(cmd.Context(), c)
				if err != nil {
					return err
				}
				return g.console.Print(g.format, taskList{tasks}, func(w io.Writer) error {
					return writeTasks(w, g.console.Now(), tasks)
				})
			})
		},
	}
	g.addClusterFlags(cmd)
	return cmd
}

// taskList is a list of tasks in JSON.
type taskList struct {
	Tasks []Task `json:"tasks"`
}

// withDaemon runs do with a connection to the daemon.
func withDaemon(ctx context.Context, target daemon.Target, do func(*daemon.Client) error) error {
	c, err := target.Dial(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// listTasks returns the daemon's tasks by ID.
func listTasks(ctx context.Context, c *daemon.Client) ([]Task, error) {
	resp, err := c.ListTasks(ctx, &apiv1.ListTasksRequest{})
	if err != nil {
		return nil, c.Explain(ctx, "list tasks", err)
	}
	tasks := make([]Task, 0, len(resp.Tasks))
	for _, st := range resp.Tasks {
		tasks = append(tasks, newTask(st))
	}
	slices.SortFunc(tasks, func(a, b Task) int { return strings.Compare(a.ID, b.ID) })
	return tasks, nil
}

func writeTasks(w io.Writer, now time.Time, tasks []Task) error {
	table := output.NewTable("TASK", "SIZE", "HELD", "STATE", "LAST USED", "SOURCE")
	for _, t := range tasks {
		used := ""
		if t.LastAccess != nil {
			used = output.Ago(now, *t.LastAccess)
		}
		table.Add(task.ID(t.ID).Short(), output.Bytes(t.Length), held(t.HeldBytes, t.Length), t.State, used, t.Source)
	}
	return table.Write(w)
}

func held(done, total int64) string { return fmt.Sprintf("%d%%", output.Percent(done, total)) }

func (g *taskGroup) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show one task",
		Example: "  dfctl task show sha256:9f86d081884c\n  dfctl task show 9f86",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if g.ofCluster {
				return g.showCluster(cmd.Context(), args[0])
			}
			return withDaemon(cmd.Context(), g.daemon, func(c *daemon.Client) error {
				t, err := findTask(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				return g.console.Print(g.format, t, func(w io.Writer) error { return t.write(w, g.console.Now()) })
			})
		},
	}
	g.addClusterFlags(cmd)
	return cmd
}

// findTask returns the daemon's task with the given ID or beginning of an ID.
func findTask(ctx context.Context, c *daemon.Client, name string) (*Task, error) {
	tasks, err := listTasks(ctx, c)
	if err != nil {
		return nil, err
	}
	i, err := find(name, len(tasks), func(i int) string { return tasks[i].ID })
	if err != nil {
		return nil, err
	}
	return &tasks[i], nil
}

// find returns which of n IDs name means.
func find(name string, n int, id func(int) string) (int, error) {
	found := -1
	for i := range n {
		_, hex, _ := strings.Cut(id(i), ":")
		switch {
		case id(i) == name:
			return i, nil
		case name == "" || !strings.HasPrefix(id(i), name) && !strings.HasPrefix(hex, name):
		case found >= 0:
			return 0, fmt.Errorf("task %s: more than one task begins so; give more of its ID", output.Clean(name))
		default:
			found = i
		}
	}
	if found < 0 {
		return 0, exit.With(exit.NotFound, fmt.Errorf("task %q: no such task; see 'dfctl task ls'", output.Clean(name)))
	}
	return found, nil
}

func (t *Task) write(w io.Writer, now time.Time) error {
	pinned, used := "", "never"
	if t.PinnedUntil != nil && t.PinnedUntil.After(now) {
		pinned = t.PinnedUntil.Format(time.RFC3339)
	}
	if t.LastAccess != nil {
		used = output.Ago(now, *t.LastAccess)
	}
	return output.WriteFields(w,
		[2]string{"task", t.ID},
		[2]string{"source", t.Source},
		[2]string{"state", t.State},
		[2]string{"error", t.Error},
		[2]string{"size", output.Bytes(t.Length)},
		[2]string{"held", fmt.Sprintf("%s (%s), %d of %d pieces", output.Bytes(t.HeldBytes), held(t.HeldBytes, t.Length), t.HeldPieces, t.Pieces)},
		[2]string{"received", fmt.Sprintf("%s from peers, %s from the supernode, %s from the origin",
			output.Bytes(t.From.Peers), output.Bytes(t.From.Supernode), output.Bytes(t.From.Origin))},
		[2]string{"etag", t.ETag},
		[2]string{"content type", t.ContentType},
		[2]string{"last used", used},
		[2]string{"pinned until", pinned},
	)
}

func (g *taskGroup) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID",
		Short: "Remove a task from this node's store, unless it is in use",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withDaemon(cmd.Context(), g.daemon, func(c *daemon.Client) error {
				t, err := findTask(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				if _, err := c.RemoveTask(cmd.Context(), &apiv1.RemoveTaskRequest{TaskId: t.ID}); err != nil {
					return c.Explain(cmd.Context(), "remove task "+t.ID, err)
				}
				document := struct {
					Removed string `json:"removed"`
				}{t.ID}
				return g.console.Print(g.format, document, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "removed %s\n", output.Clean(t.ID))
					return err
				})
			})
		},
	}
}
