package doctor

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// Defaults of the daemons.
const (
	defaultKeeper  = "/run/damselfly/keeper.sock"
	defaultDataDir = "/var/lib/damselfly/snapshotter"
	defaultMirror  = "127.0.0.1:65001"
	defaultConfig  = "/etc/containerd/config.toml"
	defaultTrust   = "/etc/damselfly/trust.yaml"
)

// patience bounds each question to a daemon or program.
const patience = 5 * time.Second

// doctor is one examination.
type doctor struct {
	system System
	daemon daemon.Target
	lazy   daemon.Snapshotter

	keeper, dataDir, mirror, config, trust string

	report *Report
}

// Command returns dfctl doctor for a machine; zero fields of system are those of
// this one.
func Command(console *output.Console, system System) *cobra.Command {
	d := &doctor{system: system.withDefaults()}
	var format output.Format
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps this node from mounting images lazily, and say what to do",
		Long: `Look at this node's kernel, disk, container runtime and daemons, and say of each
whether it is as Damselfly needs it, what it means if not, and what to do.

Run it as root: others cannot look at everything, and are told so. Nothing is
changed. The exit code is 0 only if there is no problem; warnings are none.

` + exit.Summary,
		Example: `  sudo dfctl doctor
  sudo dfctl doctor --data-dir /data/damselfly -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.examine(cmd.Context())
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			return errors.Join(console.Print(format, d.report, d.report.write), d.report.err())
		},
	}
	fs := cmd.Flags()
	d.daemon.AddFlag(fs, console.Getenv)
	d.lazy.AddFlag(fs, console.Getenv)
	fs.StringVar(&d.keeper, "keeper", defaultKeeper, "`SOCKET` of this node's keeper")
	fs.StringVar(&d.dataDir, "data-dir", defaultDataDir, "`DIR` of the snapshotter's data")
	fs.StringVar(&d.mirror, "mirror", defaultMirror, "`HOST:PORT` of dfdaemon's registry mirror")
	fs.StringVar(&d.config, "containerd-config", defaultConfig, "`FILE` with containerd's configuration")
	fs.StringVar(&d.trust, "trust", "", "`FILE` with the trust policy (default "+defaultTrust+" if there is one)")
	format.AddFlag(fs)
	return cmd
}

// examine makes the report.
func (d *doctor) examine(ctx context.Context) {
	d.report = &Report{OK: true}
	d.kernel()
	d.disk()
	d.backends(ctx)
	d.limits()
	d.containerd(ctx)
	d.daemons(ctx)
	d.policy()
	d.units(ctx)
}

// beside is the path of another socket of the same daemon.
func beside(socket, suffix string) string {
	ext := filepath.Ext(socket)
	return strings.TrimSuffix(socket, ext) + suffix + ext
}

// needsRoot is a finding of what could not be looked at.
func needsRoot(check string) Finding {
	return Finding{
		Check: check, Status: Unknown, Found: "only root can tell",
		Meaning: "this was not looked at", Remedy: "run it with sudo",
	}
}
