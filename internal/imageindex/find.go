package imageindex

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
)

// ErrNoIndex says that an image has no index.
var ErrNoIndex = errors.New("the image has no index")

// maxCandidates bounds the artifacts of one image that are looked at: anybody
// who may push to a repository can add some.
const maxCandidates = 16

// Found is the artifact with the indexes of an image.
type Found struct {
	// Descriptor of the artifact's manifest, and Artifact what it says.
	Descriptor v1.Descriptor
	Artifact   *artifact.Image
	// Subject is the image's manifest, and Config its configuration; nil where
	// Resolved had none.
	Subject *v1.Manifest
	Config  *v1.Image
	// Verdict says why the artifact is trusted. If it is not, Untrusted says
	// why.
	Verdict   trust.Verdict
	Untrusted error
}

// Find returns the index of an image in a source that the policy trusts. Errors
// wrap ErrNoIndex, trust.ErrUntrusted, or are those of the source.
func Find(ctx context.Context, src *image.Source, r *Resolved, policy *trust.Policy) (*Found, error) {
	f, err := FindAny(ctx, src, r, policy)
	if err == nil && f.Untrusted != nil {
		return nil, f.Untrusted
	}
	return f, err
}

// FindAny is Find, but returns an artifact that is not trusted too, if there is
// no better one. What cannot be read hides nothing that can.
func FindAny(ctx context.Context, src *image.Source, r *Resolved, policy *trust.Policy) (*Found, error) {
	f := &finder{src: src, image: r, policy: policy, seen: map[digest.Digest]bool{}}
	if r.Artifact != nil {
		f.look(ctx, *r.Artifact)
		return f.result()
	}
	// The tag has the latest artifact, and costs one request.
	tagged, desc, err := byTag(ctx, src, artifact.Tag(r.Descriptor.Digest), artifact.ArtifactType)
	f.fail(err)
	if tagged != nil {
		f.look(ctx, desc)
	}
	if f.trusted != nil {
		return f.result()
	}
	candidates, err := src.Referrers(ctx, r.Descriptor.Digest, artifact.ArtifactType)
	f.fail(err)
	slices.Reverse(candidates) // registries list the oldest first
	for _, c := range candidates {
		f.look(ctx, c)
	}
	return f.result()
}

// finder is one search for the artifact of an image.
type finder struct {
	src    *image.Source
	image  *Resolved
	policy *trust.Policy
	seen   map[digest.Digest]bool
	// trusted is the first candidate that the policy trusts, untrusted the
	// first that it does not.
	trusted, untrusted *Found
	failed             []error
}

func (f *finder) fail(err error) {
	if err != nil {
		f.failed = append(f.failed, err)
	}
}

// look inspects a candidate unless that is of no more use.
func (f *finder) look(ctx context.Context, c v1.Descriptor) {
	if f.trusted != nil || f.seen[c.Digest] || len(f.seen) == maxCandidates || ctx.Err() != nil {
		return
	}
	f.seen[c.Digest] = true
	found, err := f.inspect(ctx, c)
	switch {
	case err != nil:
		f.fail(err)
	case found.Untrusted == nil:
		f.trusted = found
	case f.untrusted == nil:
		f.untrusted = found
	}
}

// result is the best that was found. That something could not be read counts
// only if there is nothing better.
func (f *finder) result() (*Found, error) {
	of := f.src.Ref().WithDigest(f.image.Descriptor.Digest)
	switch {
	case f.trusted != nil:
		return f.trusted, nil
	case f.untrusted != nil && len(f.failed) > 0:
		f.untrusted.Untrusted = fmt.Errorf("%w; besides, there is more that could not be read: %w", f.untrusted.Untrusted, errors.Join(f.failed...))
		return f.untrusted, nil
	case f.untrusted != nil:
		return f.untrusted, nil
	case len(f.failed) > 0:
		return nil, fmt.Errorf("find the index of %s: %w", of, errors.Join(f.failed...))
	}
	return nil, fmt.Errorf("%s: %w", of, ErrNoIndex)
}

// inspect reads one candidate and asks the policy. An error is about reading or
// a broken candidate; that nobody vouches for it is in the result.
func (f *finder) inspect(ctx context.Context, c v1.Descriptor) (*Found, error) {
	data, desc, err := f.src.Manifest(ctx, c.Digest.String())
	if err != nil {
		return nil, err
	}
	candidate := trust.Candidate{
		Repository:    repository(f.src.Ref()),
		SubjectDigest: f.image.Descriptor.Digest, Subject: f.image.Manifest,
		Artifact: data,
	}
	verdict, err := f.policy.Verify(candidate)
	if errors.Is(err, trust.ErrUntrusted) {
		// Only now are signatures worth the requests.
		verdict, err = verifySigned(ctx, f.src, desc.Digest, candidate, f.policy)
	}
	found := &Found{Descriptor: desc, Verdict: verdict, Artifact: verdict.Image, Subject: verdict.Subject, Config: f.image.Config}
	if err == nil {
		return found, nil
	}
	if !errors.Is(err, trust.ErrUntrusted) {
		return nil, err
	}
	found.Untrusted = err
	if found.Artifact, err = artifact.Parse(data); err != nil {
		return nil, err
	}
	found.Subject, err = artifact.ParseSubject(f.image.Manifest)
	return found, err
}

// byTag returns the manifest that a tag names, nil if there is none of this
// type.
func byTag(ctx context.Context, src *image.Source, tag, artifactType string) ([]byte, v1.Descriptor, error) {
	data, desc, err := src.Manifest(ctx, tag)
	if errors.Is(err, image.ErrNotFound) || err == nil && TypeOf(data) != artifactType {
		return nil, v1.Descriptor{}, nil
	}
	return data, desc, err
}

// TypeOf returns the artifactType of a manifest, and "" if it has none.
func TypeOf(manifest []byte) string {
	var m struct {
		ArtifactType string `json:"artifactType"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return ""
	}
	return m.ArtifactType
}

// repository is how policies call the place of an image.
func repository(ref image.Ref) string {
	if ref.Kind != image.KindRegistry {
		return ""
	}
	return ref.Registry + "/" + ref.Repository
}
