package artifact

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// dockerManifest is the media type of the manifests that Docker writes; they
// have the members of OCI's.
const dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"

// EmptyConfig is the content of the config of every artifact, and of the layer
// of a signature: a registry must have it before the manifest.
const EmptyConfig = "{}"

// Empty returns the descriptor of EmptyConfig.
func Empty() v1.Descriptor {
	return v1.Descriptor{MediaType: v1.MediaTypeEmptyJSON, Digest: digest.FromString(EmptyConfig), Size: int64(len(EmptyConfig))}
}

// Encode completes m as an OCI artifact with the empty config and returns its
// bytes and its descriptor, which has what a list of referrers repeats of m.
// Equal manifests have equal bytes. The error wraps ErrInvalid: m has no layers
// or is too large.
func Encode(m v1.Manifest) ([]byte, v1.Descriptor, error) {
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	m.MediaType, m.Config = v1.MediaTypeImageManifest, Empty()
	if len(m.Layers) == 0 {
		return nil, v1.Descriptor{}, invalid("no layers")
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("encode manifest: %w", err)
	}
	if err := checkLength(data); err != nil {
		return nil, v1.Descriptor{}, err
	}
	return data, v1.Descriptor{
		MediaType: m.MediaType, ArtifactType: m.ArtifactType,
		Digest: digest.FromBytes(data), Size: int64(len(data)), Annotations: m.Annotations,
	}, nil
}

// Decode returns the OCI artifact of the given type that Encode has made, or
// one like it. Its subject and its layers are checked descriptors of blobs.
// Errors wrap ErrInvalid.
func Decode(data []byte, artifactType string) (*v1.Manifest, error) {
	m, err := decode(data, v1.MediaTypeImageManifest)
	if err != nil {
		return nil, err
	}
	empty := Empty()
	switch {
	case m.MediaType == "":
		return nil, invalid("no media type")
	case m.ArtifactType != artifactType:
		return nil, invalid("artifactType is %.80q, not %q", m.ArtifactType, artifactType)
	case m.Config.MediaType != empty.MediaType || m.Config.Digest != empty.Digest || m.Config.Size != empty.Size:
		return nil, invalid("config is not the empty one")
	case len(m.Layers) == 0:
		return nil, invalid("no layers")
	case m.Subject == nil:
		return nil, invalid("no subject")
	}
	if err := checkSubject(*m.Subject); err != nil {
		return nil, err
	}
	return m, nil
}

// ParseSubject returns the manifest of an image, OCI's or Docker's. Its layers
// and its config are checked descriptors of blobs. Errors wrap ErrInvalid.
func ParseSubject(data []byte) (*v1.Manifest, error) {
	m, err := decode(data, v1.MediaTypeImageManifest, dockerManifest)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > MaxLayers {
		return nil, invalid("%d layers, at most %d", len(m.Layers), MaxLayers)
	}
	if err := checkDescriptor(m.Config, MaxBlobSize); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return m, nil
}

func decode(data []byte, types ...string) (*v1.Manifest, error) {
	if err := checkLength(data); err != nil {
		return nil, err
	}
	var m struct {
		v1.Manifest
		// What other kinds of manifests have. A document of two kinds would
		// mean different things to different readers.
		Manifests json.RawMessage `json:"manifests"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, invalid("%w", err)
	}
	if err := checkMembers(data); err != nil {
		return nil, err
	}
	switch {
	case m.Manifests != nil:
		return nil, invalid("it is a list of manifests: name the manifest of one platform")
	case m.FSLayers != nil:
		return nil, invalid("it is of Docker's first schema")
	case m.SchemaVersion != 2:
		return nil, invalid("schemaVersion is %d, not 2", m.SchemaVersion)
	case m.MediaType != "" && !slices.Contains(types, m.MediaType):
		return nil, invalid("media type is %.80q, not %q", m.MediaType, types[0])
	}
	for i, l := range m.Layers {
		if err := checkDescriptor(l, MaxBlobSize); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return &m.Manifest, nil
}

func checkLength(data []byte) error {
	if len(data) > MaxManifest {
		return invalid("it has %d bytes, at most %d", len(data), MaxManifest)
	}
	return nil
}

func checkDescriptor(d v1.Descriptor, most int64) error {
	if _, err := chunkfmt.ParseDigest(string(d.Digest)); err != nil {
		return invalid("%w", err)
	}
	if d.Size < 0 || d.Size > most {
		return invalid("size of %s is %d bytes, at most %d", d.Digest, d.Size, most)
	}
	return nil
}

func checkSubject(d v1.Descriptor) error {
	if err := checkDescriptor(d, MaxManifest); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	if d.MediaType != v1.MediaTypeImageManifest && d.MediaType != dockerManifest {
		return invalid("subject is a %.80q, not the manifest of an image", d.MediaType)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}
