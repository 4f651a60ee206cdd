package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
)

// Runner runs a program; what it prints is in the error if it fails.
type Runner func(ctx context.Context, name string, args ...string) error

func runProgram(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: install containerd's ctr, or name it by --ctr", err)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}

// lastLine is where programs say what went wrong.
func lastLine(out []byte) string {
	out = bytes.TrimSpace(out)
	return output.Clean(string(out[bytes.LastIndexByte(out, '\n')+1:]))
}

// Pull is what dfctl bench pull prints.
type Pull struct {
	Image        string       `json:"image"`
	Repeat       int          `json:"repeat"`
	Snapshotters []PulledWith `json:"snapshotters"`
}

// PulledWith are the times with one snapshotter, in seconds.
type PulledWith struct {
	Snapshotter string `json:"snapshotter"`
	Runs        []Run  `json:"runs"`
	// First is the first run's total; later ones find what dfdaemon and the
	// snapshotter have kept. Median is that of all runs.
	First  float64 `json:"first_seconds"`
	Median float64 `json:"median_seconds"`
	// ReceivedBytes is the median of what the machine received.
	ReceivedBytes int64 `json:"received_bytes"`
}

// Run is one pull.
type Run struct {
	Pull  float64 `json:"pull_seconds"`
	Mount float64 `json:"mount_seconds"`
	// ReceivedBytes came in on all network interfaces but loopback meanwhile,
	// for whomever.
	ReceivedBytes int64 `json:"received_bytes"`
}

type pullOptions struct {
	ctr, address, hosts string
	snapshotters        []string
	repeat              int
	plain               bool
}

func (g *group) pullCommand() *cobra.Command {
	o := pullOptions{}
	cmd := &cobra.Command{
		Use:   "pull REF",
		Short: "Measure how long containerd takes until an image's file system can be used",
		Long: `Have this node's containerd pull an image with each snapshotter, mount it and list
its root directory, and remove it again. REF is a full name, as ctr takes it.

It is done in a containerd namespace of its own. What other namespaces have of
the image is not fetched again, and dfdaemon and the snapshotter keep what they
have between the runs: so the first run is shown beside the median, and the
snapshotter that is named first may fetch for the others. For a cold start, empty
the caches before (dfctl cache prune --to 0). ctr pulls lazily from containerd 2.1
on.

` + exit.Summary,
		Example: `  sudo dfctl bench pull registry.local/app:v1
  sudo dfctl bench pull docker.io/library/golang:1.26 --snapshotter damselfly,overlayfs --repeat 3`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.repeat < 1 {
				return cli.Usagef("--repeat %d: at least 1", o.repeat)
			}
			r, err := g.pull(cmd.Context(), o, args[0])
			if err != nil {
				return err
			}
			return g.console.Print(g.format, r, r.write)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&o.ctr, "ctr", "ctr", "`PROGRAM` of containerd")
	fs.StringVar(&o.address, "address", "/run/containerd/containerd.sock", "`SOCKET` of containerd")
	fs.StringVar(&o.hosts, "hosts-dir", "/etc/containerd/certs.d", "`DIR` that leads to dfdaemon's mirror; \"\" for none")
	fs.StringSliceVar(&o.snapshotters, "snapshotter", []string{"damselfly", "overlayfs"}, "`NAMES` to compare, as containerd knows them")
	fs.IntVar(&o.repeat, "repeat", 5, "take the median of `N` pulls with each")
	fs.BoolVar(&o.plain, "plain-http", false, "speak plain HTTP to the registry")
	return cmd
}

// namespace of containerd for what bench pulls.
const namespace = "damselfly-bench"

func (g *group) pull(ctx context.Context, o pullOptions, reference string) (_ *Pull, err error) {
	dir, err := os.MkdirTemp("", "dfctl-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	r := &Pull{Image: reference, Repeat: o.repeat}
	for _, s := range o.snapshotters {
		r.Snapshotters = append(r.Snapshotters, PulledWith{Snapshotter: s})
	}
	for range o.repeat {
		for i := range r.Snapshotters {
			s := &r.Snapshotters[i]
			run, err := g.pullOnce(ctx, o, s.Snapshotter, reference, dir)
			if err != nil {
				return nil, fmt.Errorf("pull %s with %s: %w", reference, s.Snapshotter, err)
			}
			s.Runs = append(s.Runs, run)
		}
	}
	for i := range r.Snapshotters {
		r.Snapshotters[i].summarize()
	}
	return r, nil
}

func (s *PulledWith) summarize() {
	var totals []float64
	var received []float64
	for _, run := range s.Runs {
		totals = append(totals, run.Pull+run.Mount)
		received = append(received, float64(run.ReceivedBytes))
	}
	s.First, s.Median, s.ReceivedBytes = totals[0], median(totals), int64(median(received))
}

// pullOnce measures one pull, and leaves nothing of it in containerd.
func (g *group) pullOnce(ctx context.Context, o pullOptions, snapshotter, reference, dir string) (run Run, err error) {
	ctr := func(ctx context.Context, args ...string) error {
		return g.run(ctx, o.ctr, append([]string{"--address", o.address, "--namespace", namespace}, args...)...)
	}
	pull := []string{"images", "pull", "--snapshotter", snapshotter}
	if o.hosts != "" {
		pull = append(pull, "--hosts-dir", o.hosts)
	}
	if o.plain {
		pull = append(pull, "--plain-http")
	}
	before, err := received()
	if err != nil {
		return run, err
	}
	begin := g.console.Now()
	// Also what a pull that failed has left is removed.
	defer func() {
		err = errors.Join(err, ctr(context.WithoutCancel(ctx), "images", "rm", "--sync", reference))
	}()
	if err := ctr(ctx, append(pull, reference)...); err != nil {
		return run, err
	}
	pulled := g.console.Now()
	run.Pull = seconds(pulled.Sub(begin))
	if err := ctr(ctx, "images", "mount", "--snapshotter", snapshotter, reference, dir); err != nil {
		return run, err
	}
	_, err = os.ReadDir(dir)
	run.Mount = seconds(g.console.Now().Sub(pulled))
	after, receivedErr := received()
	run.ReceivedBytes = max(after-before, 0)
	return run, errors.Join(err, receivedErr, ctr(context.WithoutCancel(ctx), "images", "unmount", "--snapshotter", snapshotter, "--rm", dir))
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// received returns how many bytes have come in so far but over loopback.
func received() (int64, error) {
	data, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, fmt.Errorf("count what the machine receives: %w", err)
	}
	return parseReceived(string(data)), nil
}

func parseReceived(text string) int64 {
	total := int64(0)
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || strings.TrimSpace(name) == "lo" || len(f) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			total += n
		}
	}
	return total
}

func (r *Pull) write(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%s, %s with each\n", output.Clean(r.Image), output.Count(r.Repeat, "pull")); err != nil {
		return err
	}
	table := output.NewTable("SNAPSHOTTER", "FIRST", "MEDIAN", "PULL", "MOUNT", "RECEIVED")
	for _, s := range r.Snapshotters {
		var pulls, mounts []float64
		for _, run := range s.Runs {
			pulls, mounts = append(pulls, run.Pull), append(mounts, run.Mount)
		}
		table.Add(s.Snapshotter, fmt.Sprintf("%.3f s", s.First), fmt.Sprintf("%.3f s", s.Median),
			fmt.Sprintf("%.3f s", median(pulls)), fmt.Sprintf("%.3f s", median(mounts)), output.Bytes(s.ReceivedBytes))
	}
	return table.Write(w)
}
