package accelerate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/httprange"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// readers is how many layers are waited for at a time.
const readers = 4

// reader is a registry with one repository: manifests are the origin's, blobs
// come through the cache. It is an http.RoundTripper, so that package image
// reads from it what it reads from registries.
type reader struct {
	a     *Accelerator
	place place
	cred  origin.Credential
	// own lets the supernode's own credential be tried after cred.
	own bool

	mu        sync.Mutex
	manifests map[string]*document
	objects   map[task.ID]*cdn.Object
}

// document is a manifest as the registry sent it.
type document struct {
	mediaType string
	data      []byte
}

func (a *Accelerator) newReader(img Image) *reader {
	return &reader{
		a: a, place: newPlace(img.Base, img.Repo), cred: img.Credential, own: img.OwnToo,
		manifests: map[string]*document{}, objects: map[task.ID]*cdn.Object{},
	}
}

// close lets the cache evict what was read.
func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.objects {
		o.Release()
	}
	clear(r.objects)
}

// RoundTrip implements http.RoundTripper.
func (r *reader) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close() // as RoundTrip has to; nothing of it is of use
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/"+r.place.repo+"/")
	kind, reference, _ := strings.Cut(rest, "/")
	switch {
	case req.URL.Path == "/v2/" || req.URL.Path == "/v2":
		return response(req, http.StatusOK, nil, http.NoBody, 0), nil
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		return response(req, http.StatusMethodNotAllowed, nil, http.NoBody, 0), nil
	case ok && kind == "manifests":
		return r.manifest(req, reference)
	case ok && kind == "blobs":
		return r.blob(req, reference)
	}
	return response(req, http.StatusNotFound, nil, http.NoBody, 0), nil
}

func response(req *http.Request, status int, h http.Header, body io.ReadCloser, n int64) *http.Response {
	if h == nil {
		h = http.Header{}
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	if req.Method == http.MethodHead {
		_ = body.Close() // nothing of it is wanted
		body = http.NoBody
	}
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: body, ContentLength: n, Request: req,
	}
}

func (r *reader) manifest(req *http.Request, reference string) (*http.Response, error) {
	d, err := r.document(req.Context(), reference, req.Header.Get("Accept"))
	if err != nil {
		return nil, err
	}
	h := http.Header{"Content-Type": {d.mediaType}}
	return response(req, http.StatusOK, h, io.NopCloser(strings.NewReader(string(d.data))), int64(len(d.data))), nil
}

// document asks the origin for a manifest, once.
func (r *reader) document(ctx context.Context, reference, accept string) (*document, error) {
	r.mu.Lock()
	known := r.manifests[reference]
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	obj := origin.Object{URL: r.place.manifestURL(reference), Header: http.Header{"Accept": {accept}}}
	if r.cred != (origin.Credential{}) {
		obj.Credentials = []origin.Credential{r.cred}
	}
	body, err := r.a.o.Origin.Open(ctx, obj, 0, -1)
	if denied(err) && r.own && obj.Credentials != nil {
		obj.Credentials = nil
		body, err = r.a.o.Origin.Open(ctx, obj, 0, -1)
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(body, artifact.MaxManifest+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", reference, err)
	}
	if len(data) > artifact.MaxManifest {
		return nil, fmt.Errorf("manifest %s has more than %d bytes", reference, artifact.MaxManifest)
	}
	d := &document{mediaType: body.ContentType, data: data}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifests[reference] = d
	return d, nil
}

func (r *reader) blob(req *http.Request, reference string) (*http.Response, error) {
	id, err := task.ParseID(reference)
	if err != nil {
		return response(req, http.StatusNotFound, nil, http.NoBody, 0), nil //nolint:nilerr // as a registry says it
	}
	o, err := r.object(req.Context(), id)
	if err != nil {
		return nil, err
	}
	size := o.Table().Length
	off, n, partial, err := httprange.Parse(req.Header.Get("Range"), size)
	if err != nil {
		return response(req, http.StatusRequestedRangeNotSatisfiable, nil, http.NoBody, 0), nil //nolint:nilerr // as a registry says it
	}
	h := http.Header{"Content-Type": {"application/octet-stream"}, "Accept-Ranges": {"bytes"}, "Etag": {`"` + reference + `"`}}
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size))
	}
	body := io.ReadCloser(http.NoBody)
	if n > 0 {
		if body, err = o.Open(req.Context(), off, n); err != nil {
			return nil, err
		}
	}
	return response(req, status, h, body, n), nil
}

// object returns a blob once the cache has all of it. It stays there until
// close.
func (r *reader) object(ctx context.Context, id task.ID) (*cdn.Object, error) {
	r.mu.Lock()
	o := r.objects[id]
	r.mu.Unlock()
	if o == nil {
		var err error
		if o, err = r.ensure(ctx, id); err != nil {
			return nil, err
		}
		o = r.keep(id, o)
	}
	return o, o.WaitComplete(ctx)
}

// keep takes over a reference, and returns the object that there is one to.
func (r *reader) keep(id task.ID, o *cdn.Object) *cdn.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	if first := r.objects[id]; first != nil {
		o.Release()
		return first
	}
	r.objects[id] = o
	return o
}

func (r *reader) ensure(ctx context.Context, id task.ID) (*cdn.Object, error) {
	request := cdn.Request{
		ID: id, URL: r.place.blobURL(id), Credential: r.cred, Authorized: r.cred == origin.Credential{}, Whole: true,
	}
	o, err := r.a.cache.Ensure(ctx, request)
	if denied(err) && r.own && !request.Authorized {
		request.Credential, request.Authorized = origin.Credential{}, true
		o, err = r.a.cache.Ensure(ctx, request)
	}
	return o, err
}

// denied reports whether another credential may fare better.
func denied(err error) bool {
	var s *origin.StatusError
	return errors.As(err, &s) && (s.Status == http.StatusUnauthorized || s.Status == http.StatusForbidden || s.Status == http.StatusNotFound)
}

// fetch waits until the cache has all layers of an image.
func (r *reader) fetch(ctx context.Context, img *image.Image) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i := range img.Layers {
		if img.Layers[i].Foreign() {
			continue // converting says why that cannot be
		}
		id, err := task.ParseID(img.Layers[i].Descriptor.Digest.String())
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		group.Go(func() error {
			if _, err := r.object(ctx, id); err != nil {
				return fmt.Errorf("layer %d (%s): %w", i, id.Short(), err)
			}
			return nil
		})
	}
	return group.Wait()
}
