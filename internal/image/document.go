package image

import (
	"encoding/json"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The media types of Docker's own that mean the same as OCI's.
const (
	dockerManifest = string(types.DockerManifestSchema2)
	dockerIndex    = string(types.DockerManifestList)
	dockerConfig   = string(types.DockerConfigJSON)
	dockerSchema1  = string(types.DockerManifestSchema1)
	dockerSigned1  = string(types.DockerManifestSchema1Signed)

	acceptManifests = v1.MediaTypeImageIndex + ", " + v1.MediaTypeImageManifest + ", " + dockerIndex + ", " + dockerManifest
)

// document is what manifests and indexes have in common.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	Subject       *v1.Descriptor    `json:"subject"`
	FSLayers      []json.RawMessage `json:"fsLayers"`

	Annotations map[string]string `json:"annotations"`
}

// parseDocument reads a manifest or index. The media type is what the server
// said, or ""; the document returned always has one of those known.
func parseDocument(data []byte, mediaType string) (*document, error) {
	doc := &document{}
	if err := json.Unmarshal(data, doc); err != nil {
		return nil, fmt.Errorf("%w: not a manifest: %w", ErrCorrupt, err)
	}
	if doc.SchemaVersion == 1 || doc.FSLayers != nil || mediaType == dockerSchema1 || mediaType == dockerSigned1 {
		return nil, fmt.Errorf("%w: a Docker manifest of schema 1: pull and push the image with a current docker to convert it", ErrUnsupported)
	}
	isIndex, isManifest := doc.Manifests != nil, doc.Config != nil || doc.Layers != nil
	if doc.MediaType == "" {
		doc.MediaType = guessType(mediaType, isIndex, isManifest)
	}
	ok := false
	switch doc.MediaType {
	case v1.MediaTypeImageIndex, dockerIndex:
		ok = !isManifest // the list may be empty
	case v1.MediaTypeImageManifest, dockerManifest:
		ok = !isIndex && doc.Config != nil
	default:
		return nil, fmt.Errorf("%w: media type %q is neither of an image nor of an index of images", ErrUnsupported, oneLine(doc.MediaType, 100))
	}
	if !ok {
		// What is both must not depend on who reads it.
		return nil, fmt.Errorf("%w: its content is not of its media type %s", ErrCorrupt, doc.MediaType)
	}
	return doc, nil
}

// guessType is the media type of a document without one: the server's, unless
// that says nothing.
func guessType(mediaType string, isIndex, isManifest bool) string {
	switch mediaType {
	case v1.MediaTypeImageIndex, dockerIndex, v1.MediaTypeImageManifest, dockerManifest:
		return mediaType
	}
	switch {
	case isIndex:
		return v1.MediaTypeImageIndex
	case isManifest:
		return v1.MediaTypeImageManifest
	}
	return mediaType
}

func (d *document) index() bool {
	return d.MediaType == v1.MediaTypeImageIndex || d.MediaType == dockerIndex
}

// artifactType is the type as the distribution specification defines it.
func (d *document) artifactType() string {
	if d.ArtifactType == "" && d.Config != nil {
		return d.Config.MediaType
	}
	return d.ArtifactType
}

// checkImage refuses manifests of something else than an image.
func (d *document) checkImage() error {
	switch d.Config.MediaType {
	case v1.MediaTypeImageConfig, dockerConfig:
		return nil
	}
	return fmt.Errorf("%w: an artifact of type %q, not an image", ErrUnsupported, oneLine(d.artifactType(), 100))
}
