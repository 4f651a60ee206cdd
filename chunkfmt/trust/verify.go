package trust

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
)

// MaxSignatures bounds the signatures of one artifact that Verify looks at.
const MaxSignatures = 64

// Candidate is the artifact of an image, and what may vouch for it. Nothing of
// it need be checked before.
type Candidate struct {
	// Repository is where the image was asked for, HOST/REPO; empty if it is
	// in none, such as in an OCI layout.
	Repository string
	// SubjectDigest is the digest of the image's manifest by which the image
	// is used, and Subject are its bytes.
	SubjectDigest digest.Digest
	Subject       []byte
	// Artifact is the manifest of the artifact.
	Artifact []byte
	// Signatures are manifests of signatures, those by keys of the policy
	// first. Others do no harm.
	Signatures [][]byte
}

// Reason is why an artifact is trusted.
type Reason string

// The reasons.
const (
	// Bound artifacts are vouched for by the manifest of their image.
	Bound Reason = "bound"
	// Signed artifacts are signed by a key of the policy.
	Signed Reason = "signed"
	// Unsigned artifacts are in a repository that the policy lists.
	Unsigned Reason = "unsigned"
)

// Verdict is why an artifact is trusted, and what it says.
type Verdict struct {
	Reason Reason
	// Key is the ID of the key that has signed; empty for other reasons.
	Key string
	// Digest of the artifact's manifest.
	Digest digest.Digest
	// Image is what the artifact says. Its indexes are to be checked against
	// it when they have been fetched: digest, size and artifact.Layer.Check.
	Image *artifact.Image
	// Subject is the manifest of the image.
	Subject *v1.Manifest
}

// String returns the reason as people read it.
func (v Verdict) String() string {
	switch v.Reason {
	case Bound:
		return "bound by the image's manifest"
	case Signed:
		return "signed by key " + v.Key
	case Unsigned:
		return "in a repository that needs no signatures"
	}
	return "not trusted"
}

// Verify decides whether the indexes of an artifact may be used for an image.
// The artifact is that of the image and of its layers in any case. An error
// wraps ErrUntrusted if nobody vouches for it whom the policy trusts, and then
// says what to do about it; else artifact.ErrInvalid or artifact.ErrMismatch.
func (p *Policy) Verify(c Candidate) (Verdict, error) {
	v, err := c.open()
	if err != nil {
		return Verdict{}, fmt.Errorf("verify the index of %s: %w", c.name(), err)
	}
	if v.Image.Bound(v.Subject) {
		v.Reason = Bound
		return v, nil
	}
	key, failed := p.signer(v.Digest, c.Signatures)
	if failed == nil {
		v.Reason, v.Key = Signed, key
		return v, nil
	}
	if p.Unsigned(c.Repository) {
		v.Reason = Unsigned
		return v, nil
	}
	return Verdict{}, fmt.Errorf("verify the index of %s: %w: %w", c.name(), ErrUntrusted, c.advise(failed))
}

// open parses the manifests and checks that they belong together.
func (c *Candidate) open() (Verdict, error) {
	v := Verdict{Digest: digest.FromBytes(c.Artifact)}
	if _, err := chunkfmt.ParseDigest(string(c.SubjectDigest)); err != nil {
		return v, fmt.Errorf("image's manifest: %w: %w", artifact.ErrInvalid, err)
	}
	if got := digest.FromBytes(c.Subject); got != c.SubjectDigest {
		return v, fmt.Errorf("image's manifest: %w: its digest is %s", artifact.ErrInvalid, got)
	}
	var err error
	if v.Subject, err = artifact.ParseSubject(c.Subject); err != nil {
		return v, fmt.Errorf("image's manifest: %w", err)
	}
	if v.Image, err = artifact.Parse(c.Artifact); err != nil {
		return v, fmt.Errorf("artifact %s: %w", v.Digest, err)
	}
	of := v.Image.Subject
	switch {
	case of.Digest != c.SubjectDigest:
		err = fmt.Errorf("it is that of %s", of.Digest)
	case of.Size != int64(len(c.Subject)):
		err = fmt.Errorf("it is that of a manifest of %d bytes, the image's has %d", of.Size, len(c.Subject))
	case v.Subject.MediaType != "" && of.MediaType != v.Subject.MediaType:
		err = fmt.Errorf("it is that of a %.80s, the image's manifest is a %s", of.MediaType, v.Subject.MediaType)
	}
	if err != nil {
		return v, fmt.Errorf("artifact %s: %w: %w", v.Digest, artifact.ErrMismatch, err)
	}
	if err := artifact.MatchLayers(v.Image, v.Subject); err != nil {
		return v, fmt.Errorf("artifact %s: %w", v.Digest, err)
	}
	return v, nil
}

// signer returns the ID of a key of the policy that has signed the artifact,
// or why there is none.
func (p *Policy) signer(of digest.Digest, signatures [][]byte) (string, error) {
	var foreign []string
	var broken error
	looked := signatures[:min(len(signatures), MaxSignatures)]
	for _, data := range looked {
		s, err := ParseSignature(data)
		if err != nil {
			broken = err
			continue
		}
		if s.Artifact.Digest != of {
			broken = fmt.Errorf("the signature by key %s is of another artifact, %s", s.Key, s.Artifact.Digest)
			continue
		}
		known := false
		for _, key := range p.keysOf(s.Key) {
			if s.by(key, of) {
				return key.ID(), nil
			}
			known = true
		}
		if known {
			broken = fmt.Errorf("the signature by key %s is wrong: damaged, or forged", s.Key)
		} else if !slices.Contains(foreign, s.Key) {
			foreign = append(foreign, s.Key)
		}
	}
	if len(looked) < len(signatures) {
		broken = errors.Join(broken, fmt.Errorf("only %d of %d signatures were looked at", len(looked), len(signatures)))
	}
	return "", &unsignedError{foreign: foreign, broken: broken}
}

func (p *Policy) keysOf(id string) []PublicKey {
	if p == nil {
		return nil
	}
	first, _ := slices.BinarySearchFunc(p.keys, id, func(k PublicKey, id string) int { return strings.Compare(k.id, id) })
	end := first
	for end < len(p.keys) && p.keys[end].id == id {
		end++
	}
	return p.keys[first:end]
}

// unsignedError says why no signature counted.
type unsignedError struct {
	foreign []string // IDs of keys that are not in the policy
	broken  error
}

func (e *unsignedError) Error() string {
	var parts []string
	if len(e.foreign) > 0 {
		parts = append(parts, fmt.Sprintf("it is signed by key %s, which this node does not trust: if it should, add the public key (dfctl key export) to trust.keys",
			strings.Join(e.foreign, " and key ")))
	}
	if e.broken != nil {
		parts = append(parts, e.broken.Error())
	}
	if len(e.foreign) == 0 {
		if e.broken == nil {
			parts = append(parts, "it is not signed")
		}
		parts = append(parts, "sign it by converting the image again (dfctl image convert) with a key that this node trusts")
	}
	return strings.Join(parts, "; ")
}

// advise adds to why no signature counted what else would help.
func (c *Candidate) advise(failed error) error {
	if c.Repository == "" {
		return failed
	}
	return fmt.Errorf("%w; or list %.200q in trust.unsigned if everybody who can push there may be trusted", failed, c.Repository)
}

func (c *Candidate) name() string {
	if c.Repository == "" {
		return fmt.Sprintf("%.80s", c.SubjectDigest)
	}
	return fmt.Sprintf("%.200s@%.80s", c.Repository, c.SubjectDigest)
}
