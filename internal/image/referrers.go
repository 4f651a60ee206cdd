package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

const (
	maxReferrerPages = 64
	maxReferrers     = 4096
)

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// fallbackTag is where referrers are listed in registries without an API for
// them.
func fallbackTag(subject digest.Digest) string {
	return subject.Algorithm().String() + "-" + subject.Encoded()
}

// referrers implements store.
func (r *remote) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	list, ok, err := r.referrersAPI(ctx, subject, artifactType)
	if err == nil && !ok {
		var index v1.Index
		index, err = r.fallbackIndex(ctx, subject)
		list = index.Manifests
	}
	if err != nil {
		return nil, r.explain("pull", "from", err)
	}
	return list, nil
}

// referrersAPI asks by the API, and returns false if the registry has none.
func (r *remote) referrersAPI(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, bool, error) {
	next := r.url("referrers", subject.String())
	if artifactType != "" {
		next += "?artifactType=" + url.QueryEscape(artifactType)
	}
	var list []v1.Descriptor
	for page := 0; next != ""; page++ {
		if page == maxReferrerPages || len(list) > maxReferrers {
			return nil, false, fmt.Errorf("%w: more than %d referrers or %d pages of them", ErrUnsupported, maxReferrers, maxReferrerPages)
		}
		data, h, err := r.get(ctx, next, v1.MediaTypeImageIndex)
		if page == 0 && noSuchAPI(err) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		if mediaType(h) != v1.MediaTypeImageIndex {
			// Some registries answer paths that they do not know with a web page.
			if page == 0 {
				return nil, false, nil
			}
			return nil, false, fmt.Errorf("%w: %s is no image index", ErrCorrupt, origin.RedactURL(next))
		}
		var index v1.Index
		if err := json.Unmarshal(data, &index); err != nil {
			return nil, false, fmt.Errorf("%w: %s: %w", ErrCorrupt, origin.RedactURL(next), err)
		}
		list = append(list, index.Manifests...)
		if next, err = r.nextPage(next, h); err != nil {
			return nil, false, err
		}
	}
	return list, true, nil
}

// noSuchAPI reports answers of registries that do not know the path.
func noSuchAPI(err error) bool {
	se := (*origin.StatusError)(nil)
	if !errors.As(err, &se) {
		return false
	}
	switch se.Status {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}

// nextPage returns the URL in the Link header, "" if there is none. It has to be
// on the same server: what it is sent is a credential for that one.
func (r *remote) nextPage(current string, h http.Header) (string, error) {
	link := h.Get("Link")
	target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok || !strings.Contains(params, `rel="next"`) && !strings.Contains(params, "rel=next") {
		return "", nil
	}
	from, err := url.Parse(current)
	if err != nil {
		return "", err
	}
	next, err := from.Parse(target)
	if err != nil || next.Host != from.Host || next.Scheme != from.Scheme {
		return "", fmt.Errorf("%w: the next page of %s is elsewhere", ErrCorrupt, origin.RedactURL(current))
	}
	return next.String(), nil
}

// fallbackIndex returns the index at the fallback tag, empty if there is none.
func (r *remote) fallbackIndex(ctx context.Context, subject digest.Digest) (v1.Index, error) {
	data, h, err := r.get(ctx, r.url("manifests", fallbackTag(subject)), v1.MediaTypeImageIndex)
	var index v1.Index
	if se := (*origin.StatusError)(nil); errors.As(err, &se) && se.Status == http.StatusNotFound {
		return index, nil
	}
	if err != nil {
		return index, err
	}
	doc, err := parseDocument(data, mediaType(h))
	if err == nil && !doc.index() {
		err = fmt.Errorf("%w: not an index", ErrCorrupt)
	}
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		return index, fmt.Errorf("tag %s of %s: %w", fallbackTag(subject), r.repo.Name(), err)
	}
	return index, nil
}
