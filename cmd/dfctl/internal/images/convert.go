package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

const convertLong = `Make the index of an image and put it beside the image.

The index is an artifact in the image's own repository that refers to the image.
The image keeps its name and digest. Layers that are eStargz or zstd:chunked
already, or otherwise made of many small parts, are indexed as they are; of
others, the content is stored once more in a form of which parts can be fetched.
Nodes trust the index because it is signed with your key, which is made on first
use (see dfctl key).

With --as-image an ordinary image is written instead, whose layers are tar+zstd
and which nodes with and without Damselfly pull from the same blobs; its manifest
vouches for its index.

With --to HOST/REPO:TAG the index goes to another repository, and the image with
it under that tag if it is not there. With --to oci:DIR:TAG the tag names the
index, unless it names the image already.

Run the same command again after a failure: what has arrived is not sent again.
`

// Conversion is what dfctl image convert prints.
type Conversion struct {
	Source  string                  `json:"source"`
	Target  string                  `json:"target"`
	Images  []*imageindex.Converted `json:"images"`
	Seconds float64                 `json:"seconds"`
}

// convertFlags are the command line.
type convertFlags struct {
	to, asImage, tag  string
	dictionary, trust string
	trace             string
	chunkSize         size
	groupSize         size
	codec             string
	level, inline     int
	newBlobs          bool
	platforms         []string
	key               string
	noSign            bool
	dir               string
	jobs              int
	memory            size
}

func (g *group) convertCommand() *cobra.Command {
	f := &convertFlags{chunkSize: build.DefaultChunkSize, groupSize: build.DefaultGroupSize, memory: build.DefaultMemoryLimit}
	cmd := &cobra.Command{
		Use:   "convert SRC",
		Short: "Make the index of an image, so that nodes can mount it before it has arrived",
		Long:  convertLong + "\n" + exit.Summary,
		Example: `  dfctl image convert registry.local/app:v1
  dfctl image convert registry.local/app:v2 --dictionary registry.local/app:v1
  dfctl image convert registry.local/app:v1 --as-image registry.local/app:v1-lazy
  dfctl image convert docker-archive:app.tar --to oci:./app:v1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.convert(cmd.Context(), f, args[0])
			if err != nil {
				return withCode(err)
			}
			return g.console.Print(g.format, c, c.write)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.to, "to", "", "`REF` of the repository or OCI layout for the index (default: where SRC is)")
	fs.StringVar(&f.asImage, "as-image", "", "write an ordinary image named `REF` whose layers are indexed, instead")
	fs.StringVar(&f.tag, "tag", "", "`TAG` of the index, besides the one that it always gets")
	fs.StringVar(&f.dictionary, "dictionary", "", "`REF` of an image with an index, such as the previous version: what it has is not stored again")
	fs.StringVar(&f.trust, "trust", "", "`FILE` with the trust policy for the --dictionary (default "+systemPolicy+" if there is one; your own key is always trusted)")
	fs.StringVar(&f.trace, "trace", "", "`FILE` with what a start reads, in order; it is stored together (a path, or {\"path\",\"offset\",\"length\"}, per line)")
	fs.StringArrayVar(&f.platforms, "platform", nil, "`OS/ARCH[/VARIANT]` to convert; may be repeated (default all)")
	fs.Var(&f.chunkSize, "chunk-size", "`SIZE` of chunks: a power of two from 4KiB to 16MiB")
	fs.Var(&f.groupSize, "group-size", "`SIZE` up to which chunks are compressed together, at least that of a chunk")
	fs.StringVar(&f.codec, "codec", "zstd", "`CODEC` of new blobs: zstd, or none")
	fs.IntVar(&f.level, "level", build.DefaultLevel, "`LEVEL` of zstd, 1 to 22")
	fs.IntVar(&f.inline, "inline", build.DefaultInlineMax, "store files of up to `N` bytes, at most 4096, in the index; 0 for none")
	fs.BoolVar(&f.newBlobs, "new-blobs", false, "store content anew also of layers that could be indexed as they are")
	fs.StringVar(&f.key, "key", "", "`FILE` of the signing key (default: yours, which is made if need be)")
	fs.BoolVar(&f.noSign, "no-sign", false, "do not sign")
	fs.StringVar(&f.dir, "work-dir", "", "`DIR` for blobs until they are pushed (default: the system's temporary directory, or that of the OCI layout)")
	fs.IntVar(&f.jobs, "jobs", 0, "`N` processors to use (default all)")
	fs.Var(&f.memory, "memory", "`SIZE` that buffers may take, at least 32MiB")
	return cmd
}

// leastHeap is what the tables of a large image can take besides buffers.
const leastHeap = 128 << 20

// boundHeap lets the collector work harder before the process takes more than
// its buffers and a fifth on top, and returns what undoes that. A limit that is
// set from outside (GOMEMLIMIT) stays if it is lower.
func boundHeap(buffers int64) (undo func()) {
	before := debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(before, max(buffers+buffers/5, leastHeap)))
	return func() { debug.SetMemoryLimit(before) }
}

func (g *group) convert(ctx context.Context, f *convertFlags, source string) (_ *Conversion, err error) {
	begin := g.console.Now()
	p, err := f.plan(source)
	if err != nil {
		return nil, err
	}
	defer boundHeap(int64(f.memory))()
	src, err := image.Open(ctx, p.source, image.Options{Platforms: p.platforms})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	// A mistyped name must not be the cause of a new key.
	if _, _, err := src.Manifest(ctx, ""); err != nil {
		return nil, err
	}
	key, err := g.signingKey(f)
	if err != nil {
		return nil, err
	}
	o := imageindex.ConvertOptions{Build: p.build, AsImage: f.asImage != "", Tag: f.tag, Key: key}
	if f.dictionary != "" {
		d, err := g.openDictionary(ctx, f, p, key)
		if err != nil {
			return nil, fmt.Errorf("dictionary: %w", err)
		}
		defer d.source.Close() //nolint:errcheck // only read from
		o.Dictionary, o.DictionarySource = d.find, d.source
	}
	if o.Dir, err = makeWorkDir(p.target, f.dir); err != nil {
		return nil, fmt.Errorf("make a directory for new blobs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	progress := newConvertProgress(g.console.NewProgress(g.format == output.JSON))
	o.Progress = progress.update
	images, err := imageindex.Convert(ctx, src, p.target, o)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", source, err)
	}
	progress.finish()
	return &Conversion{
		Source: source, Target: p.target.String(), Images: images,
		Seconds: g.console.Now().Sub(begin).Round(time.Millisecond).Seconds(),
	}, nil
}

// signingKey returns nil if nothing is to be signed.
func (g *group) signingKey(f *convertFlags) (*trust.PrivateKey, error) {
	switch {
	case f.noSign, f.asImage != "" && f.key == "":
		return nil, nil // the manifest of an --as-image vouches for its index
	case f.key != "":
		return trust.Load(f.key)
	}
	file, err := trust.DefaultKeyFile(g.console.Getenv)
	if err != nil {
		return nil, fmt.Errorf("%w, or use --no-sign", err)
	}
	key, created, err := trust.LoadOrCreate(file)
	if err == nil && created {
		g.console.Remarkf("made the signing key %s (%s): nodes trust it after you have given them what dfctl key export prints", file, key.ID())
	}
	return key, err
}

func (c *Conversion) write(w io.Writer) error {
	for _, i := range c.Images {
		stored, copied := i.IndexBytes+i.BlobBytes, ""
		if i.Copied {
			copied = "yes: the target did not have it"
		}
		fields := [][2]string{
			{"image", fmt.Sprintf("%s (%s)", output.Clean(c.Source), i.Platform)},
			{"manifest", i.Subject},
			{"index", fmt.Sprintf("%s in %s, tag %s", i.Artifact, output.Clean(c.Target), i.Tag)},
			{"root", i.Root},
			{"signed by", i.SignedBy},
			{"content", fmt.Sprintf("%s in %s", output.Bytes(i.PlainBytes), output.Count(len(i.Layers), "layer"))},
			{"stored", fmt.Sprintf("%s (%s of indexes, %s of blobs); the image's layers have %s", output.Bytes(stored), output.Bytes(i.IndexBytes), output.Bytes(i.BlobBytes), output.Bytes(i.ImageBytes))},
			{"image copied", copied},
			{"sent", fmt.Sprintf("%s; %s was there", output.Bytes(i.SentBytes), output.Bytes(i.PresentBytes))},
		}
		if i.SignedBy == "" {
			fields[4][1] = "nobody"
			if i.Bound {
				fields[4][1] = "nobody: the image's manifest vouches for it"
			}
		}
		if err := output.WriteFields(w, fields...); err != nil {
			return err
		}
		for _, l := range i.Layers {
			for _, warning := range l.Warnings {
				if _, err := fmt.Fprintf(w, "warning: layer %s: %s\n", short(l.Digest), output.Clean(warning)); err != nil {
					return err
				}
			}
		}
	}
	_, err := fmt.Fprintf(w, "took %s\n", output.Duration(time.Duration(c.Seconds*float64(time.Second))))
	return err
}

// makeWorkDir makes a directory for the blobs of a target: beside a layout,
// where there has to be room for them anyway, else in the system's directory.
func makeWorkDir(target image.Ref, dir string) (string, error) {
	if dir == "" && target.Kind == image.KindLayout {
		dir = filepath.Dir(target.Path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(dir, ".dfctl-convert-")
}
