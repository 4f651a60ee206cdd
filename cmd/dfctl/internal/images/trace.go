package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	dfexit "github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/lazymount"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
)

// Traced is what dfctl image trace prints.
type Traced struct {
	Image string `json:"image"`
	File  string `json:"file"`
	// Accesses is the number of lines, Files of different files, and Bytes of
	// what they read, plain.
	Accesses int   `json:"accesses"`
	Files    int   `json:"files"`
	Bytes    int64 `json:"bytes"`
	// Command is what was run, and ExitCode what it ended with; -1 if it was
	// ended by a signal, or by --duration.
	Command  []string `json:"command,omitempty"`
	ExitCode *int     `json:"exit_code,omitempty"`
}

func (t *Traced) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s: %s of %s in %s of %s\n", output.Clean(t.File), output.Count(t.Accesses, "read"), output.Bytes(t.Bytes), output.Count(t.Files, "file"), output.Clean(t.Image))
	return err
}

// tracing are the flags of dfctl image trace.
type tracing struct {
	mounting
	file     string
	dir      string
	duration time.Duration
	learned  bool
	command  []string
}

func (g *group) traceCommand() *cobra.Command {
	t := &tracing{}
	cmd := &cobra.Command{
		Use:   "trace REF --out FILE [-- COMMAND [ARG]...]",
		Short: "Record what a start of an image reads, for convert --trace",
		Long: `Record which parts of which files of an image are read, in order.

The image is mounted as by dfctl image mount. With a COMMAND, that is run in it
as root, with the image's environment and working directory, on a writable layer
that is thrown away, until it ends or --duration is over. It has this
machine's network and all rights of root: run only what you would run as root
here. Without
a COMMAND, what others read at --dir is recorded, until Ctrl-C, umount DIR or
the end of --duration.

With --learned nothing is mounted or run: the trace is what the mounts of this
image on the cluster's nodes have read first, as this node's dfdaemon knows it.

Files that lie in the index itself are not in a trace: they are never fetched.

` + dfexit.Summary,
		Example: `  sudo dfctl image trace registry.local/app:v1 -O app.trace -- /usr/bin/app --version
  sudo dfctl image trace registry.local/app:v1 -O app.trace --dir /mnt/app --duration 30s
  dfctl image trace registry.local/app:v1 -O app.trace --learned
  dfctl image convert registry.local/app:v1 --trace app.trace`,
		Args: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); len(args) < 1 || n < 0 && len(args) > 1 || n >= 0 && n != 1 {
				return errors.New("want one REF, and a command only behind --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t.command = args[1:]
			if err := t.check(); err != nil {
				return err
			}
			done, err := g.trace(cmd.Context(), t, args[0])
			if err != nil {
				return withCode(err)
			}
			return g.console.Print(g.format, done, done.write)
		},
	}
	t.addFlags(cmd.Flags(), g.console.Getenv)
	cmd.Flags().StringVarP(&t.file, "out", "O", "", "`FILE` to write; it must not exist")
	cmd.Flags().StringVar(&t.dir, "dir", "", "empty `DIR` to mount at (default with a COMMAND: a temporary one)")
	cmd.Flags().DurationVar(&t.duration, "duration", 0, "how long to record, such as 30s (default: until the COMMAND ends, or Ctrl-C)")
	cmd.Flags().BoolVar(&t.learned, "learned", false, "write what the cluster has learned of the image instead")
	return cmd
}

func (t *tracing) check() error {
	switch {
	case t.file == "":
		return cli.Usagef("name the file to write with --out")
	case t.duration < 0:
		return cli.Usagef("--duration %s: it cannot be negative", t.duration)
	case t.learned && (len(t.command) > 0 || t.dir != "" || t.duration != 0 || t.direct):
		return cli.Usagef("--learned asks dfdaemon and mounts nothing: leave out the command, --dir, --duration and --direct")
	case !t.learned && len(t.command) == 0 && t.dir == "":
		return cli.Usagef("say what to record: a command behind --, or --dir where others read")
	}
	return nil
}

func (g *group) trace(ctx context.Context, t *tracing, reference string) (*Traced, error) {
	if err := checkAbsent(t.file); err != nil {
		return nil, err
	}
	if t.learned {
		return g.traceLearned(ctx, t, reference)
	}
	if err := notRoot("mount an image"); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(lazymount.TempDir(), "dfctl-trace-")
	if err != nil {
		return nil, fmt.Errorf("make a directory to work in: %w", err)
	}
	dir := t.dir
	if dir == "" {
		dir = filepath.Join(work, "image")
		err = os.Mkdir(dir, 0o700)
	}
	var done *Traced
	if err == nil {
		done, err = g.traceMount(ctx, t, reference, dir, work)
	}
	return done, errors.Join(err, os.RemoveAll(work))
}

// traceMount records a mount at dir, and what a command reads of it.
func (g *group) traceMount(ctx context.Context, t *tracing, reference, dir, work string) (_ *Traced, err error) {
	x, err := g.mountImage(ctx, &t.mounting, reference, dir, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.close(ctx)) }()
	until := ctx
	if t.duration > 0 {
		var cancel context.CancelFunc
		until, cancel = context.WithTimeout(ctx, t.duration)
		defer cancel()
	}
	code := (*int)(nil)
	if len(t.command) == 0 {
		g.console.Remarkf("recording what is read at %s; Ctrl-C ends it", output.Clean(dir))
		select {
		case <-until.Done():
		case <-x.mount.Gone():
		}
	} else {
		n, err := g.runIn(until, x, t.command, work)
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		code = &n
	}
	done, err := x.writeTrace(t.file)
	if err != nil {
		return nil, err
	}
	done.Command, done.ExitCode = t.command, code
	return done, nil
}

// runIn runs a command in a mounted image and returns its exit code.
func (g *group) runIn(ctx context.Context, x *mountedImage, command []string, work string) (int, error) {
	env, dir := []string{"PATH=" + usualPath}, "/"
	if c := x.subject.config; c != nil {
		env = append(env, c.Config.Env...)
		if c.Config.WorkingDir != "" {
			dir = c.Config.WorkingDir
		}
	}
	start := &lazymount.Start{
		Lower: x.Directory, Work: work, Dir: dir, Args: command, Env: env,
		Program: (&starter{tree: x.tree, env: env, dir: dir}).find(command[0]),
	}
	cmd, err := start.Command(ctx, []string{"/proc/self/exe", groupName, enterName})
	if err != nil {
		return 0, err
	}
	// The document of -o json is all that goes to standard output.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = g.console.In, g.console.Err, g.console.Err
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if code := ended.ExitCode(); code == notStarted && ctx.Err() == nil {
			return 0, fmt.Errorf("%s could not be run in %s: see above", command[0], x.Image)
		} else if ctx.Err() == nil {
			g.console.Remarkf("%s ended with exit code %d: the trace has what it read until then", output.Clean(command[0]), code)
		}
		return ended.ExitCode(), nil
	}
	if err != nil && ctx.Err() == nil {
		return 0, fmt.Errorf("run %s in %s: %w", command[0], x.Image, err)
	}
	return 0, nil
}

const (
	groupName = "image"
	enterName = "run-in-image"
	// notStarted is what a command ends with that could not be run, as in a
	// shell.
	notStarted = 126
)

// enterCommand is what dfctl runs itself as, to run a command in an image.
func enterCommand() *cobra.Command {
	return &cobra.Command{
		Use: enterName, Short: "Run a command in an image, for dfctl image trace", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return dfexit.With(notStarted, lazymount.Enter(args[0]))
		},
	}
}

// traceLearned writes what other nodes have reported of an image.
func (g *group) traceLearned(ctx context.Context, t *tracing, reference string) (_ *Traced, err error) {
	s, tree, err := g.openTree(ctx, &t.reading, reference)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.source.Close()) }()
	c, err := t.daemon.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	groups, err := profile(ctx, c, s.desc.Digest)
	if err != nil {
		return nil, err
	}
	accesses := lazymount.AccessesOf(tree, groups)
	if len(accesses) == 0 {
		return nil, dfexit.With(dfexit.NotFound, fmt.Errorf("nobody has reported yet what mounts of %s read: start a container of it on a node, or record a command", reference))
	}
	return writeTrace(reference, t.file, accesses)
}

// writeTrace writes a new file with accesses.
func writeTrace(reference, file string, accesses []build.Access) (*Traced, error) {
	err := writeFile(file, func(w io.Writer) error { return lazymount.WriteTrace(w, accesses) })
	if err != nil {
		return nil, fmt.Errorf("write trace %s: %w", file, err)
	}
	t := &Traced{Image: reference, File: file, Accesses: len(accesses)}
	files := map[string]bool{}
	for i := range accesses {
		files[accesses[i].Path] = true
		t.Bytes += accesses[i].Length
	}
	t.Files = len(files)
	return t, nil
}

// groupOf is a group as dfdaemon names it.
func groupOf(blob string, group uint32) (lazymount.Group, error) {
	d, err := chunkfmt.ParseDigest(blob)
	return lazymount.Group{Blob: d, Group: int(group)}, err
}
