package inspect

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/telemetry"
)

// VersionCommand returns dfctl version.
func VersionCommand(console *output.Console) *cobra.Command {
	var format output.Format
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show what this dfctl was built from",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := telemetry.ReadBuild()
			document := struct {
				Version  string `json:"version"`
				Revision string `json:"revision"`
				Go       string `json:"go"`
				Modified bool   `json:"modified"`
			}{b.Version, b.Revision, b.Go, b.Modified}
			return console.Print(format, document, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "dfctl "+b.String())
				return err
			})
		},
	}
	format.AddFlag(cmd.Flags())
	return cmd
}
