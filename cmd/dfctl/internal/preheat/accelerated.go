package preheat

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

func (g *group) acceleratedCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "accelerated",
		Short: "List the images whose indexes the supernode has made and offers",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := g.target.Client()
			if err != nil {
				return err
			}
			defer client.Close()
			images, err := client.Accelerated(cmd.Context())
			if err != nil {
				return err
			}
			document := struct {
				Accelerated []cluster.Accelerated `json:"accelerated"`
			}{append([]cluster.Accelerated{}, images...)}
			return g.console.Print(g.format, document, func(w io.Writer) error {
				table := output.NewTable("INDEX", "SIZE", "KEY", "PUSHED", "IMAGE")
				for _, i := range images {
					table.Add(shortDigest(i.Index), output.Bytes(i.Bytes), i.Key, pushed(i), i.Image)
				}
				return table.Write(w)
			})
		},
	}
}

func pushed(i cluster.Accelerated) string {
	switch {
	case i.Pushed:
		return "yes"
	case i.PushError != "":
		return i.PushError
	}
	return "no"
}
