package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
)

// domain is the first line of what is signed.
const domain = "dev.damselfly.signature.v1\n"

func message(d digest.Digest) []byte { return []byte(domain + string(d) + "\n") }

// Signature is what the manifest of a signature says. It is checked by
// Policy.Verify only.
type Signature struct {
	// Artifact is the manifest that is signed: media type, digest and size.
	Artifact v1.Descriptor
	// Key is the ID of the key which made it, by its own account.
	Key string

	bytes []byte
}

// Sign returns the manifest of a signature over the manifest of an artifact,
// and its descriptor. It is to be pushed to the artifact's repository, with the
// tag artifact.SignatureTag. Equal calls return equal bytes.
func (k *PrivateKey) Sign(of v1.Descriptor) ([]byte, v1.Descriptor, error) {
	s := Signature{Artifact: of, Key: k.ID(), bytes: ed25519.Sign(k.key, message(of.Digest))}
	return s.manifest()
}

func (s *Signature) manifest() ([]byte, v1.Descriptor, error) {
	data, d, err := artifact.Encode(v1.Manifest{
		ArtifactType: artifact.SignatureType,
		Layers:       []v1.Descriptor{artifact.Empty()},
		Subject:      &v1.Descriptor{MediaType: s.Artifact.MediaType, Digest: s.Artifact.Digest, Size: s.Artifact.Size},
		Annotations: map[string]string{
			artifact.AnnotationKey:       s.Key,
			artifact.AnnotationSignature: base64.StdEncoding.EncodeToString(s.bytes),
		},
	})
	if err == nil {
		_, err = ParseSignature(data)
	}
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("sign %.80s: %w", s.Artifact.Digest, err)
	}
	return data, d, nil
}

// ParseSignature returns what the manifest of a signature says. It does not
// verify it. Errors wrap artifact.ErrInvalid.
func ParseSignature(data []byte) (*Signature, error) {
	m, err := artifact.Decode(data, artifact.SignatureType)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	empty := artifact.Empty()
	if len(m.Layers) != 1 || m.Layers[0].Digest != empty.Digest || m.Layers[0].Size != empty.Size {
		return nil, fmt.Errorf("signature: %w: its one layer is not the empty one", artifact.ErrInvalid)
	}
	if m.Subject.MediaType != v1.MediaTypeImageManifest {
		return nil, fmt.Errorf("signature: %w: subject is a %.80q", artifact.ErrInvalid, m.Subject.MediaType)
	}
	s := &Signature{
		Artifact: v1.Descriptor{MediaType: m.Subject.MediaType, Digest: m.Subject.Digest, Size: m.Subject.Size},
		Key:      m.Annotations[artifact.AnnotationKey],
	}
	if id, err := hex.DecodeString(s.Key); err != nil || len(id) != keyIDLength || strings.ToLower(s.Key) != s.Key {
		return nil, fmt.Errorf("signature: %w: annotation %s is %.80q, not the ID of a key", artifact.ErrInvalid, artifact.AnnotationKey, s.Key)
	}
	text := m.Annotations[artifact.AnnotationSignature]
	s.bytes, err = base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(s.bytes) != ed25519.SignatureSize || strings.ContainsAny(text, "\r\n") {
		return nil, fmt.Errorf("signature: %w: annotation %s is not %d bytes in base64", artifact.ErrInvalid, artifact.AnnotationSignature, ed25519.SignatureSize)
	}
	return s, nil
}

// by reports whether key made the signature, over the manifest of that digest.
func (s *Signature) by(key PublicKey, of digest.Digest) bool {
	return len(key.key) == ed25519.PublicKeySize && s.Artifact.Digest == of && ed25519.Verify(key.key, message(of), s.bytes)
}
