package images

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// mostProblems bounds the problems that verify lists.
const mostProblems = 100

// Verification is what dfctl image verify prints.
type Verification struct {
	Image string `json:"image"`
	// Artifact is empty if the layers' own tables of contents were used.
	Artifact string  `json:"artifact"`
	Root     string  `json:"root"`
	OK       bool    `json:"ok"`
	Checks   []Check `json:"checks"`
	// Problems are in the words of the checks that found them, at most 100.
	Problems []string `json:"problems"`
}

// Check is one kind of check and its outcome.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// Proof, of a check of one file, shows to whoever knows the root that the
	// tree has this file: see merkle.Proof. In JSON it is base64.
	Proof []byte `json:"proof,omitempty"`
}

type verifyOptions struct {
	dir          string
	files        []string
	metadataOnly bool
}

func (g *group) verifyCommand() *cobra.Command {
	r := &reading{}
	o := verifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify REF",
		Short: "Verify the index of an image: trust, Merkle roots and every stored byte, or a directory",
		Long: `Verify the index of an image.

Checked are who vouches for it, that the indexes are those of the image's
layers, that the trees give the Merkle roots, and that every group and chunk in
the blobs has its digest, for which everything is read. With --dir, a mounted or
unpacked tree is compared with the index instead of the blobs: names, types,
modes, owners, times, extended attributes, links and content. The directory
itself is left out, and run it as root, or what only root sees counts as missing.

With --file, only that file's content is read, and shown to belong to the tree
by a Merkle proof, which -o json prints.

` + exit.Summary,
		Example: `  dfctl image verify registry.local/app:v1
  dfctl image verify --metadata-only registry.local/app:v1
  dfctl image verify --dir /mnt/app registry.local/app:v1
  dfctl image verify --file /usr/bin/app registry.local/app:v1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.dir != "" && o.metadataOnly || len(o.files) > 0 && (o.dir != "" || o.metadataOnly) {
				return cli.Usagef("--dir, --file and --metadata-only exclude each other")
			}
			v, err := g.verify(cmd.Context(), r, o, args[0])
			if err != nil {
				return withCode(err)
			}
			if err := g.console.Print(g.format, v, v.write); err != nil || v.OK {
				return err
			}
			return exit.With(v.code(), fmt.Errorf("%s did not pass: see above", args[0]))
		},
	}
	r.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&o.dir, "dir", "", "compare the tree in `DIR` with the index")
	cmd.Flags().StringArrayVar(&o.files, "file", nil, "verify the content of the file at `PATH` in the image, and no other; may be repeated")
	cmd.Flags().BoolVar(&o.metadataOnly, "metadata-only", false, "do not read blobs")
	return cmd
}

func (g *group) verify(ctx context.Context, r *reading, o verifyOptions, reference string) (*Verification, error) {
	s, err := g.open(ctx, r, reference)
	if err != nil {
		return nil, err
	}
	defer s.source.Close() //nolint:errcheck // only read from
	tree, err := s.Merge(len(s.Indexes))
	if err != nil {
		return nil, err
	}
	v := &Verification{
		Image: reference, Artifact: s.Descriptor.Digest.String(), Root: s.Artifact.Root.String(),
		OK: true, Checks: []Check{}, Problems: []string{},
	}
	v.add("trust", s.Verdict.String(), s.Untrusted)
	v.add("merkle roots", output.Count(len(s.Indexes), "layer")+" and the merged tree", s.Check(tree))
	switch {
	case o.dir != "":
		err = g.verifyDir(ctx, v, tree, o.dir)
	case len(o.files) > 0:
		err = verifyFiles(ctx, v, s, tree, o.files)
	case !o.metadataOnly:
		err = g.verifyBlobs(ctx, v, s, tree)
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// add records a check: what it covered, or what it found.
func (v *Verification) add(name, detail string, problems ...error) {
	ok := true
	for _, err := range problems {
		if err == nil {
			continue
		}
		ok = false
		if len(v.Problems) < mostProblems {
			v.Problems = append(v.Problems, err.Error())
		}
	}
	if !ok {
		detail = "see below"
		v.OK = false
	}
	v.Checks = append(v.Checks, Check{Name: name, OK: ok, Detail: detail})
}

func (g *group) verifyBlobs(ctx context.Context, v *Verification, s *subject, tree *chunkfmt.Tree) error {
	progress := g.console.NewProgress(g.format == output.JSON)
	row := output.Row{Name: "reading"}
	failures, err := content.VerifyBlobs(ctx, tree, imageindex.Stored{Source: s.source}, content.VerifyOptions{
		MaxFailures: mostProblems,
		Progress: func(p content.Progress) {
			row.Done, row.Total = p.Bytes, p.TotalBytes
			progress.Update(row)
		},
	})
	if err != nil {
		return err
	}
	progress.Finish(row)
	found := make([]error, len(failures))
	for i, f := range failures {
		found[i] = f
	}
	v.add("content", fmt.Sprintf("%s in %s, %s", output.Bytes(row.Total), output.Count(len(tree.Blobs), "blob"), output.Count(len(tree.Chunks), "chunk")), found...)
	return nil
}

func (g *group) verifyDir(ctx context.Context, v *Verification, tree *chunkfmt.Tree, dir string) error {
	differences, err := content.VerifyDir(ctx, tree, dir, content.DirOptions{
		MaxDifferences: mostProblems,
		IgnoreRoot:     true, // images say nothing about it, and who unpacks one chooses
	})
	if err != nil {
		return err
	}
	found := make([]error, len(differences))
	for i, d := range differences {
		found[i] = errors.New(d.String())
	}
	v.add("directory", fmt.Sprintf("%s, %d entries", dir, len(tree.Entries)), found...)
	return nil
}

// code is the exit code of a verification that failed.
func (v *Verification) code() int {
	if len(v.Checks) > 0 && !v.Checks[0].OK && len(v.Problems) == 1 {
		return exit.Refused // nothing but trust is missing
	}
	return exit.Mismatch
}

func (v *Verification) write(w io.Writer) error {
	err := output.WriteFields(w, [2]string{"image", output.Clean(v.Image)}, [2]string{"index", index(v.Artifact)}, [2]string{"root", v.Root})
	table := output.NewTable("CHECK", "OUTCOME", "DETAIL")
	for _, c := range v.Checks {
		outcome := "ok"
		if !c.OK {
			outcome = "FAILED"
		}
		table.Add(c.Name, outcome, c.Detail)
	}
	if err == nil {
		_, err = fmt.Fprintln(w)
	}
	err = errors.Join(err, table.Write(w))
	for _, p := range v.Problems {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %s\n", output.Clean(p))
		}
	}
	return err
}
