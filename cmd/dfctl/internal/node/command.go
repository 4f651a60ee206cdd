package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Options are what the commands use of the outside. Only Out is required.
type Options struct {
	// Out receives the reports.
	Out io.Writer
	// ContainerdVersion returns the output of containerd --version. Default:
	// run it, unless --root names another file system. An error means that the
	// version is unknown, and only what every release understands is written.
	ContainerdVersion func(context.Context) (string, error)
	// Client asks the mirror whether it is there. Default: a client without
	// proxy and redirects.
	Client *http.Client
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// flags are the settings of all three commands; each command offers its own.
type flags struct {
	root    string
	runtime string
	output  string
	force   bool
	dryRun  bool
	req     request
}

// Command returns dfctl node with setup, status and remove. The commands print
// to opts.Out and return errors; none exits.
func Command(opts Options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Point this node's container runtime at dfdaemon's mirror, and take it back",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(setupCommand(opts), statusCommand(opts), removeCommand(opts))
	return cmd
}

func setupCommand(opts Options) *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Write the mirror configuration of a container runtime",
		Long: `Write the mirror configuration of a container runtime.

The runtime then asks dfdaemon first and the upstream registry when dfdaemon
does not answer. Originals are kept; dfctl node remove restores them. The
registries given are all that is in force afterwards: an earlier one that is
not named is taken back.`,
		Example: `  dfctl node setup
  dfctl node setup --runtime containerd --registry docker.io --registry quay.io
  dfctl node setup --runtime containerd --edit-config`,
		Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.runSetup(cmd, opts) },
	}
	f.setup(cmd.Flags())
	return cmd
}

// setup adds the flags of node setup.
func (f *flags) setup(fs *pflag.FlagSet) {
	f.common(fs)
	fs.StringArrayVar(&f.req.registries, "registry", nil, "registry `HOST[:PORT]` to mirror; repeatable (default: every registry for containerd, docker.io for the others)")
	fs.StringVar(&f.req.mirror, "mirror", "127.0.0.1:65001", "`HOST:PORT` of dfdaemon's mirror")
	fs.StringVar(&f.req.configPath, "config-path", "", "containerd's `DIR` of hosts.toml files (default: config_path of "+configTOML+")")
	fs.BoolVar(&f.req.editConfig, "edit-config", false, "set config_path in "+configTOML+" if it is not set")
	fs.BoolVar(&f.force, "force", false, "go on where another file configures the same registry, and overwrite edits made to our part")
	fs.BoolVar(&f.dryRun, "dry-run", false, "say what would be done and change nothing")
}

func statusCommand(opts Options) *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what mirror configuration is in force; exit 0 only if it is whole and the mirror answers",
		Args:  cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, runtimes, err := f.node(opts)
			if err != nil {
				return err
			}
			rep, err := n.status(cmd.Context(), runtimes)
			if err != nil {
				return f.explain(err)
			}
			if err := rep.print(opts.Out, f.output); err != nil {
				return err
			}
			if !rep.OK {
				return ErrNotInForce
			}
			return nil
		},
	}
	f.common(cmd.Flags())
	return cmd
}

func removeCommand(opts Options) *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Restore the configuration as it was before setup",
		Args:  cobra.NoArgs, SilenceUsage: true,
		RunE: func(_ *cobra.Command, _ []string) error {
			n, runtimes, err := f.node(opts)
			if err != nil {
				return err
			}
			rep, err := n.remove(runtimes, f.force, f.dryRun)
			if err != nil {
				return f.explain(err)
			}
			return rep.print(opts.Out, f.output)
		},
	}
	f.common(cmd.Flags())
	cmd.Flags().BoolVar(&f.force, "force", false, "restore the original even of files edited since setup; the edits are lost")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be done and change nothing")
	return cmd
}

func (f *flags) common(fs *pflag.FlagSet) {
	fs.StringVar(&f.runtime, "runtime", "auto", "container runtime: auto, "+strings.Join(runtimeNames, ", "))
	fs.StringVar(&f.root, "root", "/", "`DIR` that all files are below, for preparing another file system")
	fs.StringVarP(&f.output, "output", "o", "text", "output format: text or json")
}

// node checks the common flags. The runtimes are none for auto.
func (f *flags) node(opts Options) (*node, []string, error) {
	if f.output != "text" && f.output != "json" {
		return nil, nil, fmt.Errorf("--output %q: use text or json", f.output)
	}
	root, err := filepath.Abs(f.root)
	if err != nil {
		return nil, nil, fmt.Errorf("--root %q: %w", f.root, err)
	}
	var runtimes []string
	if f.runtime != "auto" {
		if !slices.Contains(runtimeNames, f.runtime) {
			return nil, nil, fmt.Errorf("--runtime %q: use auto, %s", f.runtime, strings.Join(runtimeNames, ", "))
		}
		runtimes = []string{f.runtime}
	}
	n := &node{disk: &disk{root: root}, version: opts.ContainerdVersion, client: opts.Client, now: opts.Now}
	if n.version == nil {
		n.version = runContainerdVersion
		if root != "/" {
			// This machine's containerd says nothing about another's.
			n.version = func(context.Context) (string, error) { return "", errors.New("version unknown below --root") }
		}
	}
	if n.client == nil {
		n.client = &http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if n.now == nil {
		n.now = time.Now
	}
	return n, runtimes, nil
}

func (f *flags) runSetup(cmd *cobra.Command, opts Options) error {
	n, _, err := f.node(opts)
	if err != nil {
		return err
	}
	req := f.req
	req.force, req.dryRun, req.runtime = f.force, f.dryRun, f.runtime
	found := ""
	if req.runtime == "auto" {
		if req.runtime, found, err = detect(n.disk); err != nil {
			return err
		}
	}
	if err := req.check(); err != nil {
		return err
	}
	rep, err := n.setup(cmd.Context(), req)
	if err != nil {
		return f.explain(err)
	}
	if found != "" {
		rep.note("found %s by %s", req.runtime, found)
	}
	return rep.print(opts.Out, f.output)
}

// check refuses what cannot be meant, and settings that do not belong to the
// runtime.
func (r *request) check() error {
	if err := checkHostPort(r.mirror); err != nil {
		return fmt.Errorf("--mirror %q: %w", r.mirror, err)
	}
	if r.runtime != containerd && (r.configPath != "" || r.editConfig) {
		return fmt.Errorf("--config-path and --edit-config are for containerd, not %s", r.runtime)
	}
	if r.configPath != "" {
		if !filepath.IsAbs(r.configPath) || strings.Contains(r.configPath, string(filepath.ListSeparator)) {
			return fmt.Errorf("--config-path %q: use one absolute path", r.configPath)
		}
		r.configPath = filepath.Clean(r.configPath)
	}
	seen := map[string]bool{}
	for _, reg := range r.registries {
		if err := checkRegistry(reg, r.runtime); err != nil {
			return fmt.Errorf("--registry %q: %w", reg, err)
		}
		if seen[reg] {
			return fmt.Errorf("--registry %q is given twice", reg)
		}
		seen[reg] = true
	}
	return nil
}

var hostPattern = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)

func checkRegistry(reg, runtime string) error {
	switch {
	case reg == defaultHost && runtime == containerd:
		return nil
	case reg == "index.docker.io", reg == "registry-1.docker.io":
		return errors.New("runtimes know Docker Hub as docker.io")
	case !hostPattern.MatchString(reg) || strings.Contains(reg, ".."):
		return errors.New("use HOST or HOST:PORT, without scheme and path")
	}
	return nil
}

func checkHostPort(s string) error {
	if _, port, err := net.SplitHostPort(s); err != nil || !hostPattern.MatchString(s) {
		return errors.New("use HOST:PORT")
	} else if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return errors.New("use a port from 1 to 65535")
	}
	return nil
}

// explain adds what to do about a lack of permission.
func (f *flags) explain(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; the runtime's configuration belongs to root: run this with sudo", err)
	}
	return err
}
