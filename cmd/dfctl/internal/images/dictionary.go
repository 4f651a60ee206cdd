package images

import (
	"context"
	"errors"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// dictionary is the image that --dictionary names. It must be trusted: whoever
// signs the new index says with it that the old blobs hold what it claims.
type dictionary struct {
	source *image.Source
	policy *trust.Policy
}

func (g *group) openDictionary(ctx context.Context, f *convertFlags, p *plan, key *trust.PrivateKey) (*dictionary, error) {
	policy, err := (&reading{policy: f.trust}).loadPolicy(g.console.Getenv)
	if err != nil {
		return nil, err
	}
	if key != nil {
		if policy, err = policy.With(key.Public()); err != nil {
			return nil, err
		}
	}
	src, err := image.Open(ctx, p.dictionary, image.Options{})
	if err != nil {
		return nil, err
	}
	return &dictionary{source: src, policy: policy}, nil
}

// errOtherPlatforms says that a dictionary has nothing for a platform.
var errOtherPlatforms = errors.New("no such platform")

// find returns the indexes for a platform; nil if the dictionary has only others,
// of several.
func (d *dictionary) find(ctx context.Context, want v1.Platform) (*imageindex.Loaded, error) {
	resolved, err := imageindex.Resolve(ctx, d.source, func(all []v1.Platform) (int, error) {
		if len(all) == 1 {
			return 0, nil
		}
		i := slices.IndexFunc(all, func(p v1.Platform) bool { return image.FormatPlatform(p) == image.FormatPlatform(want) })
		if i < 0 {
			return 0, errOtherPlatforms
		}
		return i, nil
	})
	if errors.Is(err, errOtherPlatforms) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := imageindex.Find(ctx, d.source, resolved, d.policy)
	if err != nil {
		return nil, err
	}
	return imageindex.Load(ctx, d.source, found, chunkfmt.Limits{})
}
