package preheat

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
)

func (g *group) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show how far a job is; exit 0 whatever its state",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := jobID(args[0])
			if err != nil {
				return err
			}
			client, err := g.target.Client()
			if err != nil {
				return err
			}
			defer client.Close()
			job, err := client.Preheat(cmd.Context(), id)
			if err != nil {
				return err
			}
			return g.console.Print(g.format, job, func(w io.Writer) error { return writeJob(w, job) })
		},
	}
}

func jobID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id <= 0 {
		return 0, cli.Usagef("job %q: use its number, see 'dfctl preheat ls'", s)
	}
	return id, nil
}

func (g *group) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the jobs that the supernode remembers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := g.target.Client()
			if err != nil {
				return err
			}
			defer client.Close()
			jobs, err := client.Preheats(cmd.Context())
			if err != nil {
				return err
			}
			document := struct {
				Preheats []cluster.Job `json:"preheats"`
			}{append([]cluster.Job{}, jobs...)}
			return g.console.Print(g.format, document, func(w io.Writer) error {
				table := output.NewTable("ID", "TYPE", "SCOPE", "STATE", "DONE", "OBJECT")
				for i := range jobs {
					job := &jobs[i]
					table.Add(fmt.Sprint(job.ID), job.Type, job.Scope.String(), job.State, share(job.Totals.BytesHeld, job.Totals.BytesTotal), job.Object())
				}
				return table.Write(w)
			})
		},
	}
}

func (g *group) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "End a job; nodes keep what they have",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := jobID(args[0])
			if err != nil {
				return err
			}
			client, err := g.target.Client()
			if err != nil {
				return err
			}
			defer client.Close()
			job, err := client.CancelPreheat(cmd.Context(), id)
			if err != nil {
				return err
			}
			return g.console.Print(g.format, job, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "job %d: %s\n", id, job.State)
				return err
			})
		},
	}
}
