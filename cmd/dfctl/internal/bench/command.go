package bench

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// group is what the commands share.
type group struct {
	console *output.Console
	format  output.Format
	run     Runner
}

// Command returns dfctl bench. run runs programs; nil runs those of this machine.
func Command(console *output.Console, run Runner) *cobra.Command {
	g := &group{console: console, run: run}
	if run == nil {
		g.run = runProgram
	}
	cmd := &cobra.Command{Use: "bench", Short: "Measure pulls and file systems on this node"}
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.fsCommand(), g.pullCommand())
	return cmd
}

// median of a list that is not empty; of an even number, the mean of the middle
// two.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
