package preheat

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
)

// Options are what the commands use besides the console.
type Options struct {
	// After is the clock for reconnecting. Default: time.After.
	After func(time.Duration) <-chan time.Time
}

// group is what all preheat commands share.
type group struct {
	console *output.Console
	after   func(time.Duration) <-chan time.Time
	target  cluster.Target
	format  output.Format
}

// Command returns dfctl preheat.
func Command(console *output.Console, opts Options) *cobra.Command {
	g := &group{console: console, after: opts.After}
	if g.after == nil {
		g.after = time.After
	}
	cmd := &cobra.Command{
		Use:   "preheat",
		Short: "Bring images and files to nodes before they are needed",
		Long: `Bring images and files to the supernode, or on to the nodes, before they are
needed. The job runs in the supernode; the command follows it until it ends and
succeeds only if everything is where it was asked for.

` + exit.Summary,
	}
	g.target.AddFlags(cmd.PersistentFlags(), console.Getenv)
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.imageCommand(), g.fileCommand(), g.showCommand(), g.listCommand(), g.cancelCommand(), g.acceleratedCommand())
	return cmd
}

// flags are those of the commands that start a job.
type flags struct {
	scope         string
	peers         []string
	zone          string
	percent       int
	platforms     []string
	username      string
	passwordStdin bool
	timeout       time.Duration
	noWait        bool
}

func (g *group) imageCommand() *cobra.Command {
	f := &flags{}
	var accelerate bool
	cmd := &cobra.Command{
		Use:   "image REF",
		Short: "Preheat all blobs of an image",
		Example: `  dfctl preheat image docker.io/library/nginx:1.29 --scope all_peers
  dfctl preheat image ghcr.io/org/app:v3 --platform linux/arm64 --zone rack-1
  dfctl preheat image ghcr.io/org/app:v3 --accelerate
  dfctl preheat image ghcr.io/org/app:v1 --username me --password-stdin <password`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.start(cmd, f, cluster.PreheatRequest{Type: "image", Ref: args[0], Platforms: f.platforms, Accelerate: accelerate})
		},
	}
	f.add(cmd)
	cmd.Flags().StringSliceVar(&f.platforms, "platform", nil, "`OS/ARCH` to preheat of an image for several, or all; repeatable (default: linux on the supernode's architecture)")
	cmd.Flags().BoolVar(&accelerate, "accelerate", false, "have the supernode make the image's index, too, so that nodes start it before it has arrived")
	return cmd
}

func (g *group) fileCommand() *cobra.Command {
	f := &flags{}
	var digest string
	cmd := &cobra.Command{
		Use:     "file URL",
		Short:   "Preheat the content of a URL",
		Example: `  dfctl preheat file https://example.com/model.bin --percent 10`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if u, err := url.Parse(args[0]); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				return cli.Usagef("URL %q: use http://HOST/PATH or https://HOST/PATH", args[0])
			}
			return g.start(cmd, f, cluster.PreheatRequest{Type: "file", URL: args[0], SHA256: digest})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&digest, "sha256", "", "SHA-256 that the content must have, in `HEX`")
	return cmd
}

func (f *flags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.scope, "scope", cluster.ScopeSupernode, "`SCOPE` of the job: supernode, or all_peers for every node as well")
	fs.StringSliceVar(&f.peers, "peers", nil, "to the nodes with these `NAMES`, separated by commas")
	fs.StringVar(&f.zone, "zone", "", "to all nodes in this `ZONE`")
	fs.IntVar(&f.percent, "percent", 0, "to this share of all nodes, `N` from 1 to 100")
	fs.StringVar(&f.username, "username", "", "user `NAME` at the registry or origin")
	fs.BoolVar(&f.passwordStdin, "password-stdin", false, "read the password from standard input")
	fs.DurationVar(&f.timeout, "timeout", 0, "end the job after this long, such as 2h (default: the supernode's, 30m)")
	fs.BoolVar(&f.noWait, "no-wait", false, "print the job's ID and do not wait for its end")
}

// apply checks the flags and completes the request. Its errors are wrong use.
func (f *flags) apply(cmd *cobra.Command, req *cluster.PreheatRequest) error {
	var err error
	if req.Scope, err = f.chosen(cmd); err != nil {
		return err
	}
	if f.timeout < 0 {
		return fmt.Errorf("--timeout %v: use a positive duration such as 30m", f.timeout)
	}
	if f.timeout > 0 {
		req.Timeout = f.timeout.String()
	}
	if f.passwordStdin != (f.username != "") {
		return errors.New("--username and --password-stdin go together")
	}
	return nil
}

// chosen returns the scope that the flags mean.
func (f *flags) chosen(cmd *cobra.Command) (cluster.Scope, error) {
	ways := 0
	for _, name := range []string{"scope", "peers", "zone", "percent"} {
		if cmd.Flags().Changed(name) {
			ways++
		}
	}
	s := cluster.Scope{Peers: f.peers, Zone: f.zone, Percent: f.percent}
	switch {
	case ways > 1:
		return s, errors.New("use only one of --scope, --peers, --zone and --percent: each says where to")
	case f.scope == cluster.ScopeAllPeers:
		s.AllPeers = true
	case f.scope != cluster.ScopeSupernode:
		return s, fmt.Errorf("--scope %q: use %s or %s", f.scope, cluster.ScopeSupernode, cluster.ScopeAllPeers)
	case cmd.Flags().Changed("percent") && (f.percent < 1 || f.percent > 100):
		return s, fmt.Errorf("--percent %d: use 1 to 100", f.percent)
	case cmd.Flags().Changed("zone") && f.zone == "":
		return s, errors.New("--zone is empty: name a zone")
	case cmd.Flags().Changed("peers") && (len(f.peers) == 0 || slices.Contains(f.peers, "")):
		return s, errors.New("--peers has an empty name: use NAME,NAME,…")
	}
	return s, nil
}

// start creates the job and follows it unless told not to wait.
func (g *group) start(cmd *cobra.Command, f *flags, req cluster.PreheatRequest) error {
	if err := f.apply(cmd, &req); err != nil {
		return cli.Usagef("%w", err)
	}
	client, err := g.target.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	if f.passwordStdin {
		password, err := readPassword(g.console.In)
		if err != nil {
			return err
		}
		req.Credentials = &cluster.Credentials{Username: f.username, Password: password}
	}
	ctx := cmd.Context()
	job, err := client.StartPreheat(ctx, req)
	if err != nil {
		return err
	}
	if f.noWait {
		return g.console.Print(g.format, job, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, job.ID)
			return err
		})
	}
	job, err = g.follow(ctx, client, job)
	if err != nil {
		return err
	}
	if err := g.console.Print(g.format, job, func(w io.Writer) error { return writeJob(w, job) }); err != nil {
		return err
	}
	return outcome(job)
}

// readPassword reads all of in, without the line end that echo adds.
func readPassword(in io.Reader) (string, error) {
	const maxPassword = 64 << 10
	data, err := io.ReadAll(io.LimitReader(in, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("read the password from standard input: %w", err)
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" || len(data) > maxPassword {
		return "", cli.Usagef("standard input holds no password, or a too long one")
	}
	return password, nil
}
