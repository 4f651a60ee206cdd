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
	// Subject is the image's manifest.
	Subject *v1.Manifest
	// Verdict says why the artifact is trusted. If it is not, Untrusted says
	// why.
	Verdict   trust.Verdict
	Untrusted error
}

// Find returns the index of an image in a source that the policy trusts. The
// subject is the descriptor of the image's manifest, manifest its bytes. Errors
// wrap ErrNoIndex, trust.ErrUntrusted, or are those of the source.
func Find(ctx context.Context, src *image.Source, subject v1.Descriptor, manifest []byte, policy *trust.Policy) (*Found, error) {
	f, err := FindAny(ctx, src, subject, manifest, policy)
	if err == nil && f.Untrusted != nil {
		return nil, f.Untrusted
	}
	return f, err
}

// FindAny is Find, but returns an artifact that is not trusted too, if there is
// no better one.
func FindAny(ctx context.Context, src *image.Source, subject v1.Descriptor, manifest []byte, policy *trust.Policy) (*Found, error) {
	candidates, err := src.Referrers(ctx, subject.Digest, artifact.ArtifactType)
	if err != nil {
		return nil, err
	}
	tagged, err := byTag(ctx, src, artifact.Tag(subject.Digest), artifact.ArtifactType)
	if err != nil {
		return nil, err
	}
	// The tag has the latest; registries list the oldest first.
	slices.Reverse(candidates)
	candidates = distinct(append(tagged, candidates...))
	var second *Found
	var failed []error
	for _, c := range candidates[:min(len(candidates), maxCandidates)] {
		f, err := inspect(ctx, src, c, subject, manifest, policy)
		switch {
		case err != nil:
			failed = append(failed, err)
		case f.Untrusted == nil:
			return f, nil
		case second == nil:
			second = f
		}
	}
	if second != nil {
		return second, nil
	}
	if err := errors.Join(failed...); err != nil {
		return nil, fmt.Errorf("find the index of %s: %w", src.Ref().WithDigest(subject.Digest), err)
	}
	return nil, fmt.Errorf("%s: %w", src.Ref().WithDigest(subject.Digest), ErrNoIndex)
}

func distinct(list []v1.Descriptor) []v1.Descriptor {
	seen := map[digest.Digest]bool{}
	return slices.DeleteFunc(list, func(d v1.Descriptor) bool {
		again := seen[d.Digest]
		seen[d.Digest] = true
		return again
	})
}

// byTag returns the manifest that a tag names, if there is one of this type.
func byTag(ctx context.Context, src *image.Source, tag, artifactType string) ([]v1.Descriptor, error) {
	data, desc, err := src.Manifest(ctx, tag)
	if errors.Is(err, image.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if TypeOf(data) != artifactType {
		return nil, nil
	}
	return []v1.Descriptor{desc}, nil
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

// inspect reads one candidate and asks the policy. An error is about reading or
// a broken candidate; that nobody vouches for it is in the result.
func inspect(ctx context.Context, src *image.Source, c, subject v1.Descriptor, manifest []byte, policy *trust.Policy) (*Found, error) {
	data, desc, err := src.Manifest(ctx, c.Digest.String())
	if err != nil {
		return nil, err
	}
	candidate := trust.Candidate{
		Repository:    repository(src.Ref()),
		SubjectDigest: subject.Digest, Subject: manifest,
		Artifact: data,
	}
	verdict, err := policy.Verify(candidate)
	if errors.Is(err, trust.ErrUntrusted) {
		// Only now are signatures worth the requests.
		if candidate.Signatures, err = signatures(ctx, src, desc.Digest, policy); err != nil {
			return nil, err
		}
		verdict, err = policy.Verify(candidate)
	}
	f := &Found{Descriptor: desc, Verdict: verdict, Artifact: verdict.Image, Subject: verdict.Subject}
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, trust.ErrUntrusted) {
		return nil, err
	}
	f.Untrusted = err
	if f.Artifact, err = artifact.Parse(data); err != nil {
		return nil, err
	}
	f.Subject, err = artifact.ParseSubject(manifest)
	return f, err
}

// repository is how policies call the place of an image.
func repository(ref image.Ref) string {
	if ref.Kind != image.KindRegistry {
		return ""
	}
	return ref.Registry + "/" + ref.Repository
}

// signatures returns the manifests of an artifact's signatures: those by keys
// of the policy, which have tags of their own, before others.
func signatures(ctx context.Context, src *image.Source, of digest.Digest, policy *trust.Policy) ([][]byte, error) {
	var list []v1.Descriptor
	for _, key := range policy.Keys() {
		tagged, err := byTag(ctx, src, artifact.SignatureTag(of, key.ID()), artifact.SignatureType)
		if err != nil {
			return nil, err
		}
		list = append(list, tagged...)
	}
	others, err := src.Referrers(ctx, of, artifact.SignatureType)
	if err != nil {
		return nil, err
	}
	list = distinct(append(list, others...))
	var manifests [][]byte
	for _, d := range list[:min(len(list), trust.MaxSignatures)] {
		data, _, err := src.Manifest(ctx, d.Digest.String())
		if errors.Is(err, image.ErrNotFound) {
			continue // listed, but gone
		}
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, data)
	}
	return manifests, nil
}
