package images

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// listed is how many changes diff prints unless all are asked for.
const listed = 20

// Difference is what dfctl image diff prints.
type Difference struct {
	From string `json:"from"`
	To   string `json:"to"`
	// FromTrust and ToTrust say whether this machine would use the indexes.
	FromTrust Trust `json:"from_trust"`
	ToTrust   Trust `json:"to_trust"`
	// FetchBytes are the stored bytes that a node which has all of From must
	// fetch for all of To: indexes and groups.
	FetchBytes      int64 `json:"fetch_bytes"`
	FetchIndexBytes int64 `json:"fetch_index_bytes"`
	FetchGroups     int   `json:"fetch_groups"`
	// SharedBytes are the stored bytes of groups that both use.
	SharedBytes int64    `json:"shared_bytes"`
	Added       int      `json:"added"`
	Removed     int      `json:"removed"`
	Modified    int      `json:"modified"`
	Changes     []Change `json:"changes"`
	// Omitted is how many changes are not in Changes.
	Omitted int `json:"omitted"`
}

// Change is one path that differs.
type Change struct {
	Path string `json:"path"`
	// Change is added, removed or modified; of the last, Content and Metadata
	// say what.
	Change   string `json:"change"`
	Content  bool   `json:"content,omitempty"`
	Metadata bool   `json:"metadata,omitempty"`
}

func (g *group) diffCommand() *cobra.Command {
	r := &reading{}
	all := false
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Show what a node that has image A must fetch for image B, and what differs",
		Example: `  dfctl image diff registry.local/app:v1 registry.local/app:v2
  dfctl image diff --all oci:app:v1 oci:app:v2 -o json`,
		Long: `Show what a node that has all of image A must fetch for all of image B, and
which files differ. Nothing but the indexes is read.

` + exit.Summary,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := g.diff(cmd.Context(), r, args[0], args[1], all)
			if err != nil {
				return withCode(err)
			}
			return g.console.Print(g.format, d, d.write)
		},
	}
	r.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&all, "all", false, "list all paths that differ, not only the first")
	return cmd
}

func (g *group) diff(ctx context.Context, r *reading, from, to string, all bool) (*Difference, error) {
	a, err := g.open(ctx, r, from)
	if err != nil {
		return nil, err
	}
	defer a.source.Close() //nolint:errcheck // only read from
	b, err := g.open(ctx, r, to)
	if err != nil {
		return nil, err
	}
	defer b.source.Close() //nolint:errcheck // only read from
	treeA, err := a.Merge(len(a.Indexes))
	if err != nil {
		return nil, err
	}
	treeB, err := b.Merge(len(b.Indexes))
	if err != nil {
		return nil, err
	}
	d := &Difference{From: from, To: to, FromTrust: a.trust(), ToTrust: b.trust(), Changes: []Change{}}
	d.countGroups(treeA, treeB)
	d.countIndexes(a, b)
	d.listChanges(treeA, treeB, all)
	return d, nil
}

// stored names a group across images.
type stored struct {
	blob   chunkfmt.Digest
	offset int64
}

func (d *Difference) countGroups(a, b *chunkfmt.Tree) {
	has := map[stored]bool{}
	for ref := range a.UsedGroups() {
		has[stored{a.Blobs[ref.Blob].Digest, a.Group(ref).Offset}] = true
	}
	for ref := range b.UsedGroups() {
		g := b.Group(ref)
		if has[stored{b.Blobs[ref.Blob].Digest, g.Offset}] {
			d.SharedBytes += int64(g.Stored)
			continue
		}
		d.FetchGroups++
		d.FetchBytes += int64(g.Stored)
	}
}

func (d *Difference) countIndexes(a, b *subject) {
	has := map[chunkfmt.Digest]bool{}
	for _, l := range a.Artifact.Layers {
		has[l.Index.Digest] = true
	}
	for _, l := range b.Artifact.Layers {
		if !has[l.Index.Digest] {
			has[l.Index.Digest] = true
			d.FetchIndexBytes += l.Index.Size
		}
	}
	d.FetchBytes += d.FetchIndexBytes
}

func (d *Difference) listChanges(a, b *chunkfmt.Tree, all bool) {
	for c := range merkle.Diff(merkle.Hash(a), merkle.Hash(b)) {
		switch c.Op {
		case merkle.Added:
			d.Added++
		case merkle.Removed:
			d.Removed++
		default:
			d.Modified++
		}
		if !all && len(d.Changes) == listed {
			d.Omitted++
			continue
		}
		d.Changes = append(d.Changes, Change{Path: "/" + c.Path, Change: c.Op.String(), Content: c.Content, Metadata: c.Metadata})
	}
}

func (d *Difference) write(w io.Writer) error {
	for _, i := range []struct {
		name  string
		trust Trust
	}{{d.From, d.FromTrust}, {d.To, d.ToTrust}} {
		if !i.trust.Trusted {
			if _, err := fmt.Fprintf(w, "warning: the index of %s is not trusted: %s\n", output.Clean(i.name), output.Clean(i.trust.Reason)); err != nil {
				return err
			}
		}
	}
	err := output.WriteFields(w,
		[2]string{"to fetch", fmt.Sprintf("%s (%s of indexes and %s)", output.Bytes(d.FetchBytes), output.Bytes(d.FetchIndexBytes), output.Count(d.FetchGroups, "group"))},
		[2]string{"shared", output.Bytes(d.SharedBytes)},
		[2]string{"changes", fmt.Sprintf("%d added, %d removed, %d modified", d.Added, d.Removed, d.Modified)},
	)
	for _, c := range d.Changes {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %-8s  %s%s\n", c.Change, output.Clean(c.Path), c.what())
		}
	}
	if err == nil && d.Omitted > 0 {
		_, err = fmt.Fprintf(w, "  and %d more: --all lists them\n", d.Omitted)
	}
	return err
}

// what says what of a modified path differs.
func (c *Change) what() string {
	switch {
	case c.Content && c.Metadata:
		return "  (content and metadata)"
	case c.Metadata:
		return "  (metadata)"
	}
	return ""
}
