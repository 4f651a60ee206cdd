package images

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// Exported is what dfctl image export has written.
type Exported struct {
	Image  string `json:"image"`
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	Layers int    `json:"layers"`
	Root   string `json:"root"`
}

func (g *group) exportCommand() *cobra.Command {
	r := &reading{}
	var file string
	layers := 0
	cmd := &cobra.Command{
		Use:   "export REF --out FILE",
		Short: "Write an image as one EROFS file system, with all its content",
		Long: `Write an image as one EROFS file system, with all its content.

The file can be mounted (mount -t erofs -o loop FILE DIR) or given to a virtual
machine as a read-only disk. Everything is verified on the way. The same image
gives the same file, byte by byte. FILE appears when it is complete.

` + exit.Summary,
		Example: `  dfctl image export registry.local/app:v1 --out app.erofs
  dfctl image export registry.local/app:v1 --layers 1 --out base.erofs`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case file == "":
				return cli.Usagef("name the file to write with --out")
			case cmd.Flags().Changed("layers") && layers <= 0:
				return cli.Usagef("--layers %d: at least one", layers)
			}
			e, err := g.export(cmd.Context(), r, args[0], file, layers)
			if err != nil {
				return withCode(err)
			}
			return g.console.Print(g.format, e, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %s, %s of %s\n", e.File, output.Bytes(e.Bytes), output.Count(e.Layers, "layer"), output.Clean(e.Image))
				return err
			})
		},
	}
	r.addFlags(cmd.Flags())
	cmd.Flags().StringVarP(&file, "out", "O", "", "`FILE` to write; it must not exist")
	cmd.Flags().IntVar(&layers, "layers", 0, "take only the lowest `N` layers (default all)")
	return cmd
}

func (g *group) export(ctx context.Context, r *reading, reference, file string, layers int) (*Exported, error) {
	if err := checkAbsent(file); err != nil {
		return nil, err
	}
	s, err := g.open(ctx, r, reference)
	if err != nil {
		return nil, err
	}
	defer s.source.Close() //nolint:errcheck // only read from
	if s.Untrusted != nil {
		return nil, s.Untrusted
	}
	if layers == 0 {
		layers = len(s.Indexes)
	}
	if layers > len(s.Indexes) {
		return nil, cli.Usagef("--layers %d: the image has %d", layers, len(s.Indexes))
	}
	tree, err := s.Merge(layers)
	if err != nil {
		return nil, err
	}
	root := s.Artifact.Root
	if layers < len(s.Indexes) {
		root = merkle.Root(tree)
	}
	e := &Exported{Image: reference, File: file, Layers: layers, Root: root.String()}
	err = writeFile(file, func(w io.Writer) error {
		read, done := g.reading(tree, s)
		image, err := erofs.Export(ctx, w, tree, read, erofs.Options{})
		if err != nil {
			return err
		}
		done()
		e.Bytes = image.Size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("export %s to %s: %w", reference, file, err)
	}
	return e, nil
}

// reading returns a function that reads groups, one at a time, and shows how far
// it is, and one that shows the end.
func (g *group) reading(tree *chunkfmt.Tree, s *subject) (erofs.ReadGroup, func()) {
	reader := content.NewReader(tree, imageindex.Stored{Source: s.source}, content.Options{})
	row := output.Row{Name: "exporting"}
	for ref := range tree.UsedGroups() {
		row.Total += int64(tree.Group(ref).Stored)
	}
	progress := g.console.NewProgress(g.format == output.JSON)
	read := func(ctx context.Context, ref chunkfmt.GroupRef) ([]byte, error) {
		p, err := reader.Group(ctx, ref)
		if err == nil {
			row.Done += int64(tree.Group(ref).Stored)
			progress.Update(row)
		}
		return p, err
	}
	return read, func() {
		row.Done = row.Total // groups with nothing but repetitions are not read
		progress.Finish(row)
	}
}

func checkAbsent(name string) error {
	switch _, err := os.Lstat(name); {
	case err == nil:
		return fmt.Errorf("%s: %w: remove it or name another file", name, os.ErrExist)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if info, err := os.Stat(filepath.Dir(name)); err != nil {
		return fmt.Errorf("the directory of %s: %w", name, err)
	} else if !info.IsDir() {
		return fmt.Errorf("%s: %s is not a directory", name, filepath.Dir(name))
	}
	return nil
}

// writeFile writes a new file that appears when it is complete and on the disk.
func writeFile(name string, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			_ = f.Close() // the error before is the one to tell
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	for _, step := range []func() error{
		func() error { return write(w) },
		w.Flush,
		func() error { return f.Chmod(0o644) },
		f.Sync,
		f.Close,
		func() error { return renameNew(f.Name(), name) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	done = true
	return syncDir(dir)
}

// renameNew renames a file to a name that must not be there.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// Some file systems, such as NFS, have no such call.
		if err := checkAbsent(to); err != nil {
			return err
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
