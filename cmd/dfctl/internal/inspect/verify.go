package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// Verified is what verify has found, as -o json prints it.
type Verified struct {
	OK      bool             `json:"ok"`
	Devices []VerifiedDevice `json:"devices"`
}

// VerifiedDevice is the content of one blob.
type VerifiedDevice struct {
	Blob string `json:"blob"`
	// Groups is the number of groups that were looked at, and Damaged has the
	// numbers of those that were not as written, and are dropped.
	Groups  uint32   `json:"groups"`
	Damaged []uint32 `json:"damaged"`
	// Error says why the device could not be checked to its end.
	Error string `json:"error,omitempty"`
}

func (g *cacheGroup) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Read what the snapshotter keeps of lazy images again, and drop what is damaged",
		Long: `Read all content of lazy images on this node again and compare it with the digests
that were taken when it was written. What is damaged is dropped, and fetched again
when it is needed, or at once if it is mounted. The exit code is 3 if anything was
damaged.

dfdaemon verifies its pieces by itself, whenever it sends or uses them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := g.verify(cmd.Context())
			if err != nil {
				return err
			}
			return errors.Join(g.console.Print(g.format, v, v.write), v.err())
		},
	}
}

func (g *cacheGroup) verify(ctx context.Context) (*Verified, error) {
	v := &Verified{OK: true, Devices: []VerifiedDevice{}}
	err := withSnapshotter(ctx, g.lazy, func(c *daemon.LazyClient) error {
		const doing = "verify the content of lazy images"
		stream, err := c.VerifyDevices(ctx, &apiv1.VerifyDevicesRequest{})
		if err != nil {
			return c.Explain(ctx, doing, err)
		}
		progress := g.console.NewProgress(g.format == output.JSON || !g.terminal())
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return c.Explain(ctx, doing, err)
			}
			d := VerifiedDevice{Blob: m.Blob, Groups: m.CheckedGroups, Damaged: append([]uint32{}, m.Damaged...), Error: m.Error}
			v.OK = v.OK && len(d.Damaged) == 0 && d.Error == ""
			v.Devices = append(v.Devices, d)
			progress.Update(output.Row{Name: "verifying", Note: output.Count(len(v.Devices), "device")})
		}
	})
	return v, err
}

func (g *cacheGroup) terminal() bool { return g.console.Width() > 0 }

// err is the error for what was found.
func (v *Verified) err() error {
	damaged, failed := 0, 0
	for _, d := range v.Devices {
		damaged += len(d.Damaged)
		if d.Error != "" {
			failed++
		}
	}
	switch {
	case damaged > 0:
		return exit.With(exit.Mismatch, fmt.Errorf("%s on the disk not as written: dropped, to be fetched again; check the disk, and the machine's memory", were(damaged, "group")))
	case failed > 0:
		return fmt.Errorf("%s could not be checked: see above", output.Count(failed, "device"))
	}
	return nil
}

func were(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " was"
	}
	return output.Count(n, noun) + " were"
}

func (v *Verified) write(w io.Writer) error {
	groups := 0
	for _, d := range v.Devices {
		groups += int(d.Groups)
		if len(d.Damaged) > 0 {
			if _, err := fmt.Fprintf(w, "%s: damaged: %v\n", output.Clean(d.Blob), d.Damaged); err != nil {
				return err
			}
		}
		if d.Error != "" {
			if _, err := fmt.Fprintf(w, "%s: not checked: %s\n", output.Clean(d.Blob), output.Clean(d.Error)); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "checked %s in %s\n", output.Count(groups, "group"), output.Count(len(v.Devices), "device"))
	return err
}
