package images

import (
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/image"
)

// plan is what the flags ask for.
type plan struct {
	source, target, dictionary image.Ref
	platforms                  []v1.Platform
	build                      build.Options
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
	if f.noSign && f.key != "" {
		return nil, cli.Usagef("--key and --no-sign exclude each other")
	}
	if f.trust != "" && f.dictionary == "" {
		return nil, cli.Usagef("--trust is about a --dictionary, and there is none")
	}
	if f.tag != "" {
		if ref, err := image.Parse(p.target.WithTag(f.tag).String()); err != nil || ref.Tag != f.tag {
			return nil, cli.Usagef("--tag %q is no tag", f.tag)
		}
	}
	if f.dictionary != "" {
		if p.dictionary, err = image.Parse(f.dictionary); err != nil {
			return nil, cli.Usagef("--dictionary: %w", err)
		}
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
	if err := f.checkSizes(); err != nil {
		return err
	}
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

// checkSizes refuses what build would refuse only after the image has been found.
func (f *convertFlags) checkSizes() error {
	const smallest, largest = chunkfmt.BlockSize, chunkfmt.MaxGroupPlain
	chunk, group := int64(f.chunkSize), int64(f.groupSize)
	switch {
	case chunk < smallest || chunk > largest || chunk&(chunk-1) != 0:
		return cli.Usagef("--chunk-size %s: use a power of two from 4KiB to 16MiB", &f.chunkSize)
	case group < chunk || group > largest || group%smallest != 0:
		return cli.Usagef("--group-size %s: use a multiple of 4KiB from that of a chunk, %s, to 16MiB", &f.groupSize, &f.chunkSize)
	case f.level < 1 || f.level > 22:
		return cli.Usagef("--level %d: use 1 to 22", f.level)
	case f.inline < -1 || f.inline > smallest:
		return cli.Usagef("--inline %d: use 0 to %d", f.inline, smallest)
	case f.jobs < 0:
		return cli.Usagef("--jobs %d: it cannot be negative", f.jobs)
	case f.memory < 32<<20:
		return cli.Usagef("--memory %s: use at least 32MiB", &f.memory)
	}
	return nil
}
