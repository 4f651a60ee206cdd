package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// pushManifest implements sink.
func (p *pusher) pushManifest(ctx context.Context, data []byte, desc v1.Descriptor, tag string) error {
	if tag == "" {
		tag = desc.Digest.String()
	}
	_, err := p.putManifest(ctx, data, desc.MediaType, tag)
	return p.explainPush(err)
}

// putManifest stores a manifest by tag or digest and returns the header of the
// answer.
func (p *pusher) putManifest(ctx context.Context, data []byte, mediaType, reference string) (h http.Header, err error) {
	b := BytesBlob(mediaType, data)
	b.Progress = func(int64) {}
	err = p.opts.retry(ctx, p.opts.MaxAttempts, func() (bool, error) {
		body, err := b.section(ctx, 0, b.Descriptor.Size)
		if err != nil {
			return false, err
		}
		h, err = p.send(ctx, http.MethodPut, p.url("manifests", reference), http.Header{"Content-Type": {mediaType}}, body)
		return false, err
	})
	return h, err
}

// attach implements sink.
func (p *pusher) attach(ctx context.Context, data []byte, desc v1.Descriptor, subject digest.Digest, tag string) error {
	h, err := p.putManifest(ctx, data, desc.MediaType, tag)
	if err != nil {
		return p.explainPush(err)
	}
	if h.Get("OCI-Subject") == subject.String() {
		return nil
	}
	// Without that header the registry is to be taken for one without the API,
	// but some have it all the same.
	list, ok, err := p.referrersAPI(ctx, subject, "")
	if err == nil && ok && lists(list, desc.Digest) {
		return nil
	}
	if err == nil {
		err = p.updateFallback(ctx, subject, desc)
	}
	if err != nil {
		return fmt.Errorf("list %s among what refers to %s: %w", desc.Digest, subject, p.explainPush(err))
	}
	return nil
}

func lists(list []v1.Descriptor, d digest.Digest) bool {
	return slices.ContainsFunc(list, func(desc v1.Descriptor) bool { return desc.Digest == d })
}

// updateFallback adds a descriptor to the index at the fallback tag. Registries
// have no conditional write: a writer who read before us may take our entry
// away, so it is looked for afterwards.
func (p *pusher) updateFallback(ctx context.Context, subject digest.Digest, desc v1.Descriptor) error {
	tag := fallbackTag(subject)
	for range p.opts.MaxAttempts {
		index, err := p.fallbackIndex(ctx, subject)
		if err != nil {
			return err
		}
		if lists(index.Manifests, desc.Digest) {
			return nil
		}
		index.Versioned = specs.Versioned{SchemaVersion: 2}
		index.MediaType = v1.MediaTypeImageIndex
		index.Manifests = append(index.Manifests, desc)
		err = p.putIndex(ctx, index, tag)
		if refused(err) {
			// Registries check that what an index lists is there.
			if index.Manifests, err = p.present(ctx, index.Manifests); err == nil {
				err = p.putIndex(ctx, index, tag)
			}
		}
		if err != nil {
			return err
		}
	}
	index, err := p.fallbackIndex(ctx, subject)
	if err == nil && !lists(index.Manifests, desc.Digest) {
		err = fmt.Errorf("tag %s of %s was changed by others each time: try again when they are done", tag, p.repo.Name())
	}
	return err
}

func (p *pusher) putIndex(ctx context.Context, index v1.Index, tag string) error {
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return fmt.Errorf("%w: tag %s of %s would list too much (%d bytes)", ErrUnsupported, tag, p.repo.Name(), len(data))
	}
	_, err = p.putManifest(ctx, data, v1.MediaTypeImageIndex, tag)
	return err
}

// refused reports a manifest that the registry does not take.
func refused(err error) bool {
	se := (*origin.StatusError)(nil)
	return errors.As(err, &se) && (se.Status == http.StatusBadRequest || se.Status == http.StatusNotFound)
}

// present returns the descriptors whose manifests the registry has.
func (p *pusher) present(ctx context.Context, list []v1.Descriptor) ([]v1.Descriptor, error) {
	var kept []v1.Descriptor
	for _, desc := range list {
		_, _, err := p.get(ctx, p.url("manifests", desc.Digest.String()), strings.Join([]string{acceptManifests, desc.MediaType}, ", "))
		se := (*origin.StatusError)(nil)
		switch {
		case err == nil:
			kept = append(kept, desc)
		case !errors.As(err, &se) || se.Status != http.StatusNotFound:
			return nil, err
		}
	}
	return kept, nil
}
