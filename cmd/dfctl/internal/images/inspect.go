package images

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/image"
)

// largest is how many files inspect lists unless told otherwise.
const largest = 10

// Inspection is what dfctl image inspect prints. Sizes are in bytes.
type Inspection struct {
	Image    string `json:"image"`
	Platform string `json:"platform"`
	Manifest string `json:"manifest"`
	// Artifact is empty if the layers' own tables of contents were used.
	Artifact string `json:"artifact"`
	Root     string `json:"root"`
	Trust    Trust  `json:"trust"`

	Layers []LayerInspection `json:"layers"`
	// Files, Directories and Others count the merged tree.
	Files       int `json:"files"`
	Directories int `json:"directories"`
	Others      int `json:"others"`
	// PlainBytes is what the files of the merged tree hold; ImageBytes the
	// image's own layers; IndexBytes the indexes; BlobBytes the blobs beside
	// the layers that the indexes use, whole.
	PlainBytes int64 `json:"plain_bytes"`
	ImageBytes int64 `json:"image_bytes"`
	IndexBytes int64 `json:"index_bytes"`
	BlobBytes  int64 `json:"blob_bytes"`
	// UniqueBytes are the plain bytes of distinct chunks; HoleBytes of zeros
	// stored nowhere; InlineBytes of files in the indexes.
	UniqueBytes int64 `json:"unique_bytes"`
	HoleBytes   int64 `json:"hole_bytes"`
	InlineBytes int64 `json:"inline_bytes"`
	// DedupRatio is the part of the content in chunks, holes not counted, that
	// repeats other content and is not stored for itself.
	DedupRatio float64        `json:"dedup_ratio"`
	Chunks     int            `json:"chunks"`
	Codecs     []CodecSummary `json:"codecs"`
	Largest    []FileSize     `json:"largest"`
	ColdStart  *ColdStart     `json:"cold_start,omitempty"`
}

// LayerInspection is one layer.
type LayerInspection struct {
	Digest     string `json:"digest"`
	DiffID     string `json:"diff_id"`
	Bytes      int64  `json:"bytes"`
	IndexBytes int64  `json:"index_bytes"`
	Entries    int    `json:"entries"`
	// StoredBytes are those of the groups that the layer's files lie in, of
	// which SharedBytes are in blobs that a lower layer uses too.
	StoredBytes int64 `json:"stored_bytes"`
	SharedBytes int64 `json:"shared_bytes"`
	// InPlace says that the layer's own blob is indexed.
	InPlace bool `json:"in_place"`
}

// CodecSummary is how much is stored by a codec.
type CodecSummary struct {
	Codec       string `json:"codec"`
	Groups      int    `json:"groups"`
	StoredBytes int64  `json:"stored_bytes"`
	PlainBytes  int64  `json:"plain_bytes"`
}

// FileSize is a file and its size.
type FileSize struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

func (g *group) inspectCommand() *cobra.Command {
	r := &reading{}
	o := inspectOptions{}
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show the index of an image: sizes, deduplication, largest files, what a cold start fetches",
		Long: `Show the index of an image.

Of each layer are shown its size, that of its index, the stored bytes of the
groups of chunks that its files lie in, and how many of those bytes lower layers
use too. The cold start is what a node that has nothing of the image fetches to
start it: the indexes, and the groups that the image's command, its interpreter
and their libraries lie in, or those of a --trace.

With --node, this node's snapshotter is asked instead: whether the image is lazy
here, or why not, where it is mounted, and how much of it has arrived. REF may
then be a part of the image's name, or sha256:… of its manifest.

` + exit.Summary,
		Example: `  dfctl image inspect registry.local/app:v1
  dfctl image inspect --trace app.trace oci:app:v1 -o json
  sudo dfctl image inspect --node registry.local/app:v1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.largest < 0 {
				return cli.Usagef("--largest %d: it cannot be negative", o.largest)
			}
			if o.node {
				v, err := g.inspectNode(cmd.Context(), o.snapshotter, args[0])
				if err != nil {
					return err
				}
				return g.console.Print(g.format, v, func(w io.Writer) error { return v.write(w, g.console.Now()) })
			}
			i, err := g.inspect(cmd.Context(), r, o, args[0])
			if err != nil {
				return withCode(err)
			}
			return g.console.Print(g.format, i, i.write)
		},
	}
	r.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&o.node, "node", false, "ask this node's snapshotter about the image")
	o.snapshotter.AddFlag(cmd.Flags(), g.console.Getenv)
	cmd.Flags().IntVar(&o.largest, "largest", largest, "list the `N` largest files")
	cmd.Flags().StringVar(&o.trace, "trace", "", "`FILE` with the accesses of a start (as for convert); default: the image's command and the libraries it names")
	return cmd
}

type inspectOptions struct {
	largest int
	trace   string

	node        bool
	snapshotter daemon.Snapshotter
}

func (g *group) inspect(ctx context.Context, r *reading, o inspectOptions, reference string) (*Inspection, error) {
	s, err := g.open(ctx, r, reference)
	if err != nil {
		return nil, err
	}
	defer s.source.Close() //nolint:errcheck // only read from
	tree, err := s.Merge(len(s.Indexes))
	if err != nil {
		return nil, err
	}
	i := &Inspection{
		Image: reference, Platform: image.FormatPlatform(s.platform),
		Manifest: s.desc.Digest.String(), Artifact: s.Descriptor.Digest.String(), Root: s.Artifact.Root.String(),
		Trust: s.trust(),
	}
	i.addLayers(s)
	i.addTree(tree)
	i.addChunks(tree)
	i.addLargest(tree, o.largest)
	i.ColdStart, err = coldStart(ctx, s, tree, o.trace)
	return i, err
}

func (i *Inspection) addLayers(s *subject) {
	// The table of a blob's groups is in the index of the lowest layer that uses
	// it.
	tables := map[chunkfmt.Digest]*chunkfmt.Blob{}
	for _, x := range s.Indexes {
		for n := range x.Blobs {
			if b := &x.Blobs[n]; !b.External {
				tables[b.Digest] = b
			}
		}
	}
	for n, l := range s.Artifact.Layers {
		layer := LayerInspection{
			Digest: l.Digest.String(), DiffID: l.DiffID.String(), Bytes: s.Subject.Layers[n].Size,
			IndexBytes: l.Index.Size, Entries: len(s.Indexes[n].Entries),
		}
		tree := &s.Indexes[n].Tree
		for _, b := range tree.Blobs {
			layer.InPlace = layer.InPlace || b.Digest == l.Digest
		}
		for ref := range tree.UsedGroups() {
			b := &tree.Blobs[ref.Blob]
			table := tables[b.Digest]
			if table == nil || int(ref.Group) >= len(table.Groups) {
				continue // merging the layers has failed before
			}
			bytes := int64(table.Groups[ref.Group].Stored)
			layer.StoredBytes += bytes
			if b.External {
				layer.SharedBytes += bytes
			}
		}
		i.Layers = append(i.Layers, layer)
		i.ImageBytes += layer.Bytes
	}
	i.IndexBytes = s.IndexBytes()
	for _, b := range s.Artifact.Blobs {
		i.BlobBytes += b.Size
	}
}

func (i *Inspection) addTree(t *chunkfmt.Tree) {
	for n := range t.Inodes {
		switch t.Kind(uint32(n)) {
		case chunkfmt.Dir:
			i.Directories++
		case chunkfmt.File:
			i.Files++
			i.PlainBytes += t.Inodes[n].Size
			if t.Inodes[n].Count == 0 {
				i.InlineBytes += t.Inodes[n].Size
			}
		default:
			i.Others++
		}
	}
}

func (i *Inspection) addChunks(t *chunkfmt.Tree) {
	// A merged tree has chunks that nothing visible uses, of unproven blobs.
	seen := map[*chunkfmt.Chunk]bool{}
	for n := range t.Inodes {
		for _, c := range t.Content(uint32(n)) {
			if c.Blob == chunkfmt.Hole {
				i.HoleBytes += int64(c.Length)
			} else if !seen[c] {
				i.UniqueBytes += int64(c.Length)
			}
			seen[c] = true
		}
	}
	i.Chunks = len(seen)
	if content := i.PlainBytes - i.InlineBytes - i.HoleBytes; content > 0 {
		i.DedupRatio = 1 - float64(i.UniqueBytes)/float64(content)
	}
	codecs := map[chunkfmt.Codec]*CodecSummary{}
	for ref := range t.UsedGroups() {
		g := t.Group(ref)
		c := codecs[g.Codec]
		if c == nil {
			c = &CodecSummary{Codec: g.Codec.String()}
			codecs[g.Codec] = c
		}
		c.Groups++
		c.StoredBytes += int64(g.Stored)
		c.PlainBytes += int64(g.Plain)
	}
	for _, c := range codecs {
		i.Codecs = append(i.Codecs, *c)
	}
	slices.SortFunc(i.Codecs, func(a, b CodecSummary) int { return strings.Compare(a.Codec, b.Codec) })
}

func (i *Inspection) addLargest(t *chunkfmt.Tree, n int) {
	i.Largest = []FileSize{}
	for path, inode := range t.Walk() {
		if t.Kind(inode) == chunkfmt.File {
			i.Largest = append(i.Largest, FileSize{"/" + path, t.Inodes[inode].Size})
		}
	}
	slices.SortStableFunc(i.Largest, func(a, b FileSize) int { return cmp.Compare(b.Bytes, a.Bytes) })
	i.Largest = i.Largest[:min(n, len(i.Largest))]
}

func (i *Inspection) write(w io.Writer) error {
	stored := i.IndexBytes + i.BlobBytes
	err := output.WriteFields(w,
		[2]string{"image", output.Clean(i.Image) + " (" + i.Platform + ")"},
		[2]string{"manifest", i.Manifest},
		[2]string{"index", index(i.Artifact)},
		[2]string{"root", i.Root},
		[2]string{"trusted", i.Trust.text()},
		[2]string{"content", fmt.Sprintf("%s in %s, %s, %d other", output.Bytes(i.PlainBytes), output.Count(i.Files, "file"), directories(i.Directories), i.Others)},
		[2]string{"stored", fmt.Sprintf("%s: %s of indexes, %s of blobs; the image's own layers have %s", output.Bytes(stored), output.Bytes(i.IndexBytes), output.Bytes(i.BlobBytes), output.Bytes(i.ImageBytes))},
		[2]string{"deduplicated", fmt.Sprintf("%.1f %% of the content; %s are holes, %s in the indexes", 100*i.DedupRatio, output.Bytes(i.HoleBytes), output.Bytes(i.InlineBytes))},
		[2]string{"cold start", i.ColdStart.text()},
	)
	if err != nil {
		return err
	}
	layers := output.NewTable("LAYER", "BYTES", "INDEX", "STORED", "SHARED", "ENTRIES", "IN PLACE")
	for _, l := range i.Layers {
		layers.Add(short(l.Digest), output.Bytes(l.Bytes), output.Bytes(l.IndexBytes), output.Bytes(l.StoredBytes), output.Bytes(l.SharedBytes), fmt.Sprint(l.Entries), yes(l.InPlace))
	}
	codecs := output.NewTable("CODEC", "GROUPS", "STORED", "PLAIN")
	for _, c := range i.Codecs {
		codecs.Add(c.Codec, fmt.Sprint(c.Groups), output.Bytes(c.StoredBytes), output.Bytes(c.PlainBytes))
	}
	files := output.NewTable("LARGEST FILES", "BYTES")
	for _, f := range i.Largest {
		files.Add(f.Path, output.Bytes(f.Bytes))
	}
	for _, t := range []*output.Table{layers, codecs, files} {
		if t.Len() == 0 {
			continue
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := t.Write(w); err != nil {
			return err
		}
	}
	return nil
}

func directories(n int) string {
	if n == 1 {
		return "1 directory"
	}
	return fmt.Sprintf("%d directories", n)
}

// short cuts a digest as people know it.
func short(digest string) string {
	const algorithm, digits = len("sha256:"), 12
	return digest[:min(len(digest), algorithm+digits)]
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}
