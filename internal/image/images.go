package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxDepth     = 4    // of indexes in indexes
	maxManifests = 1024 // looked at in all

	attestation = "vnd.docker.reference.type"
)

// Image is an image for one platform.
type Image struct {
	// Descriptor of the manifest. Its Platform is that of the index, if any.
	Descriptor v1.Descriptor
	// Platform according to the configuration, or to the index where that is
	// silent.
	Platform v1.Platform
	// Manifest and Config are the verified bytes.
	Manifest, Config []byte
	// Layers from the lowest up.
	Layers []Layer
}

// Images returns the images of the wanted platforms in the order of the index;
// an image without an index counts as well. Attestations are left out. If no
// image is wanted the error is ErrNoPlatform and names the platforms there are.
func (s *Source) Images(ctx context.Context) ([]*Image, error) {
	w := &walker{s: s, seen: map[digest.Digest]bool{}}
	data, desc, err := s.Manifest(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := w.walk(ctx, data, desc, 0); err != nil {
		return nil, err
	}
	if len(w.images) == 0 {
		return nil, w.none()
	}
	return w.images, nil
}

// walker collects the images of nested indexes.
type walker struct {
	s      *Source
	seen   map[digest.Digest]bool
	images []*Image
	others []string // platforms that nobody wanted
	gone   []string // manifests that are listed but not there
}

func (w *walker) none() error {
	switch {
	case len(w.others) > 0:
		return fmt.Errorf("%s: %w: it has %s", w.s.ref, ErrNoPlatform, strings.Join(w.others, ", "))
	case len(w.gone) > 0:
		return fmt.Errorf("%s: %w: %s", w.s.ref, ErrNotFound, strings.Join(w.gone, ", "))
	}
	return fmt.Errorf("%s: %w: its index holds no image", w.s.ref, ErrNoPlatform)
}

func (w *walker) walk(ctx context.Context, data []byte, desc v1.Descriptor, depth int) error {
	w.seen[desc.Digest] = true
	doc, err := parseDocument(data, desc.MediaType)
	if err != nil {
		return fmt.Errorf("manifest %s of %s: %w", desc.Digest, w.s.ref, err)
	}
	if !doc.index() {
		return w.image(ctx, data, desc, doc)
	}
	if depth == maxDepth {
		return fmt.Errorf("%s: %w: indexes nested deeper than %d", w.s.ref, ErrUnsupported, maxDepth)
	}
	for _, entry := range doc.Manifests {
		if err := w.entry(ctx, entry, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(ctx context.Context, entry v1.Descriptor, depth int) error {
	if w.seen[entry.Digest] || isAttestation(entry) || isArtifact(entry) {
		return nil
	}
	if len(w.seen) == maxManifests {
		return fmt.Errorf("%s: %w: more than %d manifests", w.s.ref, ErrUnsupported, maxManifests)
	}
	if entry.Platform != nil && !w.s.opts.wanted(*entry.Platform) {
		w.other(*entry.Platform)
		return nil
	}
	data, desc, err := w.s.Manifest(ctx, entry.Digest.String())
	if errors.Is(err, ErrNotFound) && w.s.ref.Kind == KindArchive {
		// docker save lists all platforms and saves those that it has.
		w.gone = append(w.gone, entry.Digest.String())
		return nil
	}
	if err != nil {
		return err
	}
	if entry.Size != desc.Size {
		return fmt.Errorf("manifest %s: %w: %d bytes, its index says %d", w.s.name(entry.Digest.String()), ErrCorrupt, desc.Size, entry.Size)
	}
	desc.Platform, desc.Annotations = entry.Platform, entry.Annotations
	return w.walk(ctx, data, desc, depth+1)
}

func isAttestation(desc v1.Descriptor) bool {
	p := desc.Platform
	return desc.Annotations[attestation] != "" || p != nil && p.OS == "unknown" && p.Architecture == "unknown"
}

// isArtifact reports entries that are no images. Some tools write the type of an
// image's configuration there.
func isArtifact(desc v1.Descriptor) bool {
	switch desc.ArtifactType {
	case "", v1.MediaTypeImageConfig, string(types.DockerConfigJSON):
		return false
	}
	return true
}

func (w *walker) other(p v1.Platform) {
	if s := FormatPlatform(p); !slices.Contains(w.others, s) {
		w.others = append(w.others, s)
	}
}

func (w *walker) image(ctx context.Context, data []byte, desc v1.Descriptor, doc *document) error {
	what := "image " + w.s.name(desc.Digest.String())
	if err := doc.checkImage(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	config, err := readSmall(ctx, w.s.store, *doc.Config, "configuration of "+what, maxConfig)
	if err != nil {
		return absent(err)
	}
	var parsed v1.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return fmt.Errorf("configuration of %s: %w: %w", what, ErrCorrupt, err)
	}
	img := &Image{Descriptor: desc, Platform: parsed.Platform, Manifest: data, Config: config}
	if p := desc.Platform; p != nil && (parsed.OS == "" || parsed.Architecture == "") {
		img.Platform = *p
	}
	if !w.s.opts.wanted(img.Platform) {
		w.other(img.Platform)
		return nil
	}
	if img.Layers, err = w.s.layers(doc, parsed.RootFS.DiffIDs); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	w.images = append(w.images, img)
	return nil
}
