package imageindex

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
)

// Keys have tags of their own for their signatures. Those of the first keys of a
// policy are asked for one by one, which is one request where there is one key;
// those of the others only after the list of all signatures.
const (
	firstKeys = 4
	maxKeys   = 256
)

// verifySigned collects the signatures of an artifact until the policy trusts
// one. What could not be read is an error only if that leaves it open whether
// the artifact is trusted.
func verifySigned(ctx context.Context, src *image.Source, of digest.Digest, c trust.Candidate, policy *trust.Policy) (trust.Verdict, error) {
	s := &signatureSearch{src: src, of: of, seen: map[digest.Digest]bool{}}
	keys := policy.Keys()
	keys = keys[:min(len(keys), maxKeys)]
	first := min(len(keys), firstKeys)
	for _, more := range []func(){
		func() { s.ofKeys(ctx, keys[:first]) },
		func() { s.listed(ctx) },
		func() { s.ofKeys(ctx, keys[first:]) },
	} {
		had := len(s.found)
		more()
		c.Signatures = s.found[had:]
		if v, err := policy.Verify(c); err == nil || !errors.Is(err, trust.ErrUntrusted) {
			return v, err
		}
	}
	if len(s.failed) > 0 {
		return trust.Verdict{}, fmt.Errorf("read the signatures of %s: %w", src.Ref().WithDigest(of), errors.Join(s.failed...))
	}
	c.Signatures = s.found
	return policy.Verify(c) // for all reasons at once
}

// signatureSearch collects the manifests of signatures.
type signatureSearch struct {
	src    *image.Source
	of     digest.Digest
	seen   map[digest.Digest]bool
	found  [][]byte
	failed []error
}

func (s *signatureSearch) ofKeys(ctx context.Context, keys []trust.PublicKey) {
	for _, key := range keys {
		data, desc, err := byTag(ctx, s.src, artifact.SignatureTag(s.of, key.ID()), artifact.SignatureType)
		if err != nil {
			s.failed = append(s.failed, err)
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if data != nil && !s.seen[desc.Digest] {
			s.seen[desc.Digest] = true
			s.found = append(s.found, data)
		}
	}
}

// listed adds the signatures among what refers to the artifact.
func (s *signatureSearch) listed(ctx context.Context) {
	list, err := s.src.Referrers(ctx, s.of, artifact.SignatureType)
	if err != nil {
		s.failed = append(s.failed, err)
		return
	}
	for _, d := range list[:min(len(list), trust.MaxSignatures)] {
		if s.seen[d.Digest] {
			continue
		}
		s.seen[d.Digest] = true
		data, _, err := s.src.Manifest(ctx, d.Digest.String())
		switch {
		case errors.Is(err, image.ErrNotFound): // listed, but gone
		case err != nil:
			s.failed = append(s.failed, err)
		default:
			s.found = append(s.found, data)
		}
	}
}
