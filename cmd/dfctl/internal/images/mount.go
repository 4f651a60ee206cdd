package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/lazymount"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// answering is how long dfdaemon may take to show that it is there.
const answering = 2 * time.Second

// mounting are the flags of the commands that mount an image.
type mounting struct {
	reading
	daemon   daemon.Target
	direct   bool
	cacheDir string
}

func (m *mounting) addFlags(fs *pflag.FlagSet, getenv func(string) string) {
	m.reading.addFlags(fs)
	m.daemon.AddFlag(fs, getenv)
	fs.BoolVar(&m.direct, "direct", false, "do not fetch content through this node's dfdaemon")
	fs.StringVar(&m.cacheDir, "cache-dir", "", "`DIR` on ext4 or xfs that keeps content for the next time (default: a temporary one, removed at the end)")
}

// Mounted is what dfctl image mount prints when the image can be used. Sizes
// are in bytes.
type Mounted struct {
	Image     string `json:"image"`
	Platform  string `json:"platform"`
	Manifest  string `json:"manifest"`
	Trust     Trust  `json:"trust"`
	Directory string `json:"directory"`
	Backend   string `json:"backend"`
	// Through is "dfdaemon" if that is asked for content first, or "" if it comes
	// straight from where the image is.
	Through    string `json:"through"`
	Files      int    `json:"files"`
	PlainBytes int64  `json:"plain_bytes"`
}

func (m *Mounted) write(w io.Writer) error {
	through := "straight from where the image is"
	if m.Through != "" {
		through = "through " + m.Through
	}
	_, err := fmt.Fprintf(w, "%s is mounted at %s: %s in %s, fetched as they are read, %s\nCtrl-C, or umount %[2]s, ends it\n",
		output.Clean(m.Image), output.Clean(m.Directory), output.Bytes(m.PlainBytes), output.Count(m.Files, "file"), through)
	return err
}

func (g *group) mountCommand() *cobra.Command {
	m := &mounting{}
	trace := ""
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Mount an image before it has been fetched, without containerd",
		Long: `Mount an image, read-only, at an empty directory, before it has been fetched.

What is read is fetched: through this node's dfdaemon as long as that has it to
give, else straight from the registry or the OCI layout. Everything is verified,
and the index must be trusted (--trust).

The command stays in the foreground. Ctrl-C takes the mount away, and umount DIR
ends the command; both are success. If the command is killed, reads fail, and
umount DIR takes away what is left of the mount. It needs to be root, also in a
user namespace (unshare --user --map-root-user --mount), and /dev/fuse.

With -o json the document is printed when the image is mounted.

` + exit.Summary,
		Example: `  sudo dfctl image mount registry.local/app:v1 /mnt/app
  sudo dfctl image mount --cache-dir /var/cache/app --trace app.trace oci:app:v1 /mnt/app`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withCode(g.mountUntilDone(cmd.Context(), m, trace, args[0], args[1]))
		},
	}
	m.addFlags(cmd.Flags(), g.console.Getenv)
	cmd.Flags().StringVar(&trace, "trace", "", "`FILE` to write at the end: what was read, in order, as convert --trace takes it")
	return cmd
}

func (g *group) mountUntilDone(ctx context.Context, m *mounting, trace, reference, dir string) error {
	if trace != "" {
		if err := checkAbsent(trace); err != nil {
			return err
		}
	}
	x, err := g.mountImage(ctx, m, reference, dir, trace != "")
	if err != nil {
		return err
	}
	return errors.Join(g.serve(ctx, x, trace), x.close(ctx))
}

// serve shows that the image is mounted, and returns when it is to be no more.
func (g *group) serve(ctx context.Context, x *mountedImage, trace string) error {
	if err := g.console.Print(g.format, &x.Mounted, x.write); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-x.mount.Gone():
	}
	if trace == "" {
		return nil
	}
	_, err := x.writeTrace(trace)
	return err
}

// mountedImage is an image that is mounted. The caller closes it.
type mountedImage struct {
	Mounted
	g        *group
	subject  *subject
	tree     *chunkfmt.Tree
	node     *node.Client
	recorder *lazymount.Recorder
	mount    *lazymount.Mount
}

// mountImage mounts an image that is trusted.
func (g *group) mountImage(ctx context.Context, m *mounting, reference, dir string, record bool) (_ *mountedImage, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	x := &mountedImage{g: g}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close(ctx))
		}
	}()
	if x.subject, x.tree, err = g.openTree(ctx, &m.reading, reference); err != nil {
		return nil, err
	}
	if x.node, err = m.connect(ctx, g.console, x.subject.source.Ref()); err != nil {
		return nil, err
	}
	if record {
		x.recorder = &lazymount.Recorder{}
	}
	x.mount, err = lazymount.Open(ctx, lazymount.Options{
		ID: x.subject.desc.Digest.Encoded(), Tree: x.tree, Source: x.subject.source, Node: x.node,
		CacheDir: m.cacheDir, Recorder: x.recorder,
		Log: slog.New(slog.NewTextHandler(g.console.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, dir)
	if err != nil {
		return nil, err
	}
	i := &Inspection{}
	i.addTree(x.tree)
	x.Mounted = Mounted{
		Image: reference, Platform: image.FormatPlatform(x.subject.platform), Manifest: x.subject.desc.Digest.String(),
		Trust: x.subject.trust(), Directory: dir, Backend: "fuse", Files: i.Files, PlainBytes: i.PlainBytes,
	}
	if x.node != nil {
		x.Through = "dfdaemon"
	}
	return x, nil
}

// openTree opens an image that is trusted. The caller closes its source.
func (g *group) openTree(ctx context.Context, r *reading, reference string) (*subject, *chunkfmt.Tree, error) {
	s, err := g.open(ctx, r, reference)
	if err != nil {
		return nil, nil, err
	}
	if s.Untrusted != nil {
		return nil, nil, errors.Join(s.Untrusted, s.source.Close())
	}
	tree, err := s.Merge(len(s.Indexes))
	if err != nil {
		return nil, nil, errors.Join(err, s.source.Close())
	}
	return s, tree, nil
}

// connect returns a client of dfdaemon if that answers, and can have the image.
func (m *mounting) connect(ctx context.Context, console *output.Console, ref image.Ref) (*node.Client, error) {
	if m.direct || ref.Kind != image.KindRegistry {
		return nil, nil
	}
	c, err := node.New(node.Options{Socket: m.daemon.Socket})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answering)
	defer cancel()
	if err := c.Ping(ctx); err != nil {
		if m.daemon.Socket != daemon.DefaultSocket { // somebody has named it
			console.Remarkf("content is fetched straight from %s: %s", output.Clean(ref.Registry), output.Clean(err.Error()))
		}
		return nil, c.Close()
	}
	return c, nil
}

// writeTrace writes what was read so far, and returns how much that is.
func (x *mountedImage) writeTrace(file string) (*Traced, error) {
	accesses := x.recorder.Accesses(x.tree)
	return writeTrace(x.Image, file, accesses)
}

// close ends the mount and all that it used.
func (x *mountedImage) close(ctx context.Context) error {
	var errs []error
	if x.mount != nil {
		err := x.mount.Close(ctx)
		if errors.Is(err, lazymount.ErrBusy) {
			x.g.console.Remarkf("%s was still in use: what is open there fails from now on", output.Clean(x.Directory))
			err = nil
		}
		errs = append(errs, err)
	}
	if x.node != nil {
		errs = append(errs, x.node.Close())
	}
	if x.subject != nil {
		errs = append(errs, x.subject.source.Close())
	}
	return errors.Join(errs...)
}

// notRoot is the error of what only root can do.
func notRoot(what string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return exit.With(exit.Refused, fmt.Errorf("only root can %s: run it with sudo", what))
}
