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

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
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
gives the same file, byte by byte. FILE appears when it is complete.`,
		Example: `  dfctl image export registry.local/app:v1 --out app.erofs`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return cli.Usagef("name the file to write with --out")
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
	if layers < 0 || layers > len(s.Indexes) {
		return nil, cli.Usagef("--layers %d: the image has %d", layers, len(s.Indexes))
	}
	tree, err := s.Merge(layers)
	if err != nil {
		return nil, err
	}
	e := &Exported{Image: reference, File: file, Layers: layers, Root: s.Artifact.Root.String()}
	err = writeFile(file, func(w io.Writer) error {
		image, err := erofs.Export(ctx, w, tree, g.reading(tree, s, "exporting"), erofs.Options{})
		if err != nil {
			return err
		}
		e.Bytes = image.Size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("export %s to %s: %w", reference, file, err)
	}
	return e, nil
}

// reading returns a function that reads groups and shows how far it is.
func (g *group) reading(tree *chunkfmt.Tree, s *subject, what string) func(context.Context, chunkfmt.GroupRef) ([]byte, error) {
	reader := content.NewReader(tree, imageindex.Stored{Source: s.source}, content.Options{})
	row := output.Row{Name: what}
	for ref := range tree.UsedGroups() {
		row.Total += int64(tree.Group(ref).Stored)
	}
	progress := g.console.NewProgress(g.format == output.JSON)
	return func(ctx context.Context, ref chunkfmt.GroupRef) ([]byte, error) {
		p, err := reader.Group(ctx, ref)
		row.Done += int64(tree.Group(ref).Stored)
		if row.Done < row.Total {
			progress.Update(row)
		} else {
			progress.Finish(row)
		}
		return p, err
	}
}

// writeFile writes a new file that appears when it is complete.
func writeFile(name string, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s: %w", name, os.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := write(w); err != nil {
		return err
	}
	if err := errors.Join(w.Flush(), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
