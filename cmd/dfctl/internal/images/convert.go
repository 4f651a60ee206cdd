package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
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
	dictionary, trace string
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
	fs.StringVar(&f.trace, "trace", "", "`FILE` with what a start reads, in order; it is stored together (a path, or {\"path\",\"offset\",\"length\"}, per line)")
	fs.StringArrayVar(&f.platforms, "platform", nil, "`OS/ARCH[/VARIANT]` to convert; may be repeated (default all)")
	fs.Var(&f.chunkSize, "chunk-size", "`SIZE` of chunks: a power of two from 4KiB to 16MiB")
	fs.Var(&f.groupSize, "group-size", "`SIZE` up to which chunks are compressed together, at least that of a chunk")
	fs.StringVar(&f.codec, "codec", "zstd", "zstd, or none")
	fs.IntVar(&f.level, "level", build.DefaultLevel, "level of zstd, 1 to 22")
	fs.IntVar(&f.inline, "inline", build.DefaultInlineMax, "store files of up to `N` bytes in the index; -1 for none")
	fs.BoolVar(&f.newBlobs, "new-blobs", false, "store content anew also of layers that could be indexed as they are")
	fs.StringVar(&f.key, "key", "", "`FILE` of the signing key (default: yours, which is made if need be)")
	fs.BoolVar(&f.noSign, "no-sign", false, "do not sign")
	fs.StringVar(&f.dir, "work-dir", "", "`DIR` for blobs until they are pushed (default: the system's temporary directory)")
	fs.IntVar(&f.jobs, "jobs", 0, "how many processors to use (default all)")
	fs.Var(&f.memory, "memory", "`SIZE` that buffers may take")
	return cmd
}

func (g *group) convert(ctx context.Context, f *convertFlags, source string) (_ *Conversion, err error) {
	begin := g.console.Now()
	p, err := f.plan(source)
	if err != nil {
		return nil, err
	}
	key, err := g.signingKey(f)
	if err != nil {
		return nil, err
	}
	src, err := image.Open(ctx, p.source, image.Options{Platforms: p.platforms})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	o := imageindex.ConvertOptions{Build: p.build, AsImage: f.asImage != "", Tag: f.tag, Key: key}
	if f.dictionary != "" {
		d, err := g.open(ctx, &reading{}, f.dictionary)
		if err != nil {
			return nil, fmt.Errorf("dictionary: %w", err)
		}
		defer d.source.Close() //nolint:errcheck // only read from
		o.Dictionary, o.DictionarySource = d.Loaded, d.source
	}
	if o.Dir, err = os.MkdirTemp(tempDirOf(p.target, f.dir), ".dfctl-convert-"); err != nil {
		return nil, err
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

// plan is what the flags ask for.
type plan struct {
	source, target image.Ref
	platforms      []v1.Platform
	build          build.Options
}

func (f *convertFlags) plan(source string) (*plan, error) {
	p := &plan{}
	var err error
	if p.source, err = image.Parse(source); err != nil {
		return nil, cli.Usagef("%w", err)
	}
	if err := f.chooseTarget(p); err != nil {
		return nil, err
	}
	for _, s := range f.platforms {
		platform, err := image.ParsePlatform(s)
		if err != nil {
			return nil, cli.Usagef("--platform: %w", err)
		}
		p.platforms = append(p.platforms, platform)
	}
	return p, f.buildOptions(&p.build)
}

func (f *convertFlags) chooseTarget(p *plan) error {
	to, flag := f.to, "--to"
	if f.asImage != "" {
		if f.to != "" {
			return cli.Usagef("--to and --as-image exclude each other: --as-image says where everything goes")
		}
		to, flag = f.asImage, "--as-image"
	}
	if to == "" {
		if p.source.Kind != image.KindRegistry && p.source.Kind != image.KindLayout {
			return cli.Usagef("say where the index goes with --to: a %s cannot hold it", p.source.Kind)
		}
		p.target = p.source
		return nil
	}
	var err error
	if p.target, err = image.Parse(to); err != nil {
		return cli.Usagef("%s: %w", flag, err)
	}
	if p.target.Kind != image.KindRegistry && p.target.Kind != image.KindLayout {
		return cli.Usagef("%s %s: a %s cannot be written; use HOST/REPO or oci:DIR", flag, to, p.target.Kind)
	}
	if p.target.Digest != "" {
		return cli.Usagef("%s %s: what is written gets its digest from its content: leave it out", flag, to)
	}
	return nil
}

func (f *convertFlags) buildOptions(o *build.Options) error {
	o.ChunkSize, o.GroupSize = int64(f.chunkSize), int64(f.groupSize)
	o.Level, o.InlineMax, o.Workers, o.MemoryLimit = f.level, f.inline, f.jobs, int64(f.memory)
	if f.inline == 0 {
		o.InlineMax = -1
	}
	switch f.codec {
	case "zstd":
	case "none":
		o.Codec = build.Plain
	default:
		return cli.Usagef("--codec %s: use zstd or none", f.codec)
	}
	switch {
	case f.asImage != "" && (f.trace != "" || f.dictionary != "" || f.codec == "none"):
		return cli.Usagef("--trace, --dictionary and --codec none do not go with --as-image: its layers are complete and in their own order")
	case f.asImage != "":
		o.Mode = build.AsImage
	case f.newBlobs:
		o.Mode = build.NewBlob
	}
	if f.trace == "" {
		return nil
	}
	var err error
	o.Trace, err = readTrace(f.trace)
	return err
}

// signingKey returns nil if nothing is to be signed.
func (g *group) signingKey(f *convertFlags) (*trust.PrivateKey, error) {
	switch {
	case f.noSign && f.key != "":
		return nil, cli.Usagef("--key and --no-sign exclude each other")
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
		stored := i.IndexBytes + i.BlobBytes
		fields := [][2]string{
			{"image", fmt.Sprintf("%s (%s)", output.Clean(c.Source), i.Platform)},
			{"manifest", i.Subject},
			{"index", fmt.Sprintf("%s in %s, tag %s", i.Artifact, output.Clean(c.Target), i.Tag)},
			{"root", i.Root},
			{"signed by", i.SignedBy},
			{"content", fmt.Sprintf("%s in %s", output.Bytes(i.PlainBytes), output.Count(len(i.Layers), "layer"))},
			{"stored", fmt.Sprintf("%s (%s of indexes, %s of blobs); the image's layers have %s", output.Bytes(stored), output.Bytes(i.IndexBytes), output.Bytes(i.BlobBytes), output.Bytes(i.ImageBytes))},
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

// tempDirOf is where blobs of a target wait: beside a layout, so that they can
// be moved, else in the system's directory.
func tempDirOf(target image.Ref, dir string) string {
	if dir == "" && target.Kind == image.KindLayout {
		return filepath.Dir(target.Path)
	}
	return dir
}
