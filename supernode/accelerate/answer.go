package accelerate

import (
	"context"
	"mime"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/exchange"
)

// The Accelerator is what an exchanger puts over the registries.
var _ exchange.Overlay = (*Accelerator)(nil)

const acceptImages = v1.MediaTypeImageManifest + ", application/vnd.docker.distribution.manifest.v2+json"

// asked is one small request of a client.
type asked struct {
	target
	method string
	url    string
	header http.Header
	next   exchange.Next
}

func (q asked) pass(ctx context.Context) (*exchange.Answer, error) {
	return q.next(ctx, q.method, q.url, q.header)
}

// Do implements exchange.Overlay: it adds the indexes that are offered.
func (a *Accelerator) Do(ctx context.Context, method, url string, h http.Header, next exchange.Next) (*exchange.Answer, error) {
	t, ok := parseTarget(url)
	q := asked{t, method, url, h, next}
	switch {
	case !ok:
	case t.kind == "referrers" && method == http.MethodGet:
		return a.referrers(ctx, q)
	case t.kind == "manifests":
		return a.manifest(ctx, q)
	case t.kind == "blobs" && method == http.MethodHead:
		return a.blob(ctx, q)
	}
	return q.pass(ctx)
}

// StandIn returns what to ask a registry for to learn whether it lets somebody
// read a blob that was made here: the image's manifest. It is a cdn.Options'
// StandIn.
func (a *Accelerator) StandIn(id task.ID, url string) (origin.Object, bool) {
	t, ok := parseTarget(url)
	if !ok || t.kind != "blobs" {
		return origin.Object{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r, _ := a.table.needing(t.place, id)
	if r == nil {
		return origin.Object{}, false
	}
	return origin.Object{URL: t.manifestURL(r.Subject.Digest.String()), Header: http.Header{"Accept": {acceptImages}}}, true
}

// admit asks the registry, with the client's credential, for the image that an
// index is of. The answer is nil if the client is let in.
func (q asked) admit(ctx context.Context, r *record) (refusal *exchange.Answer, err error) {
	a, err := q.next(ctx, http.MethodHead, q.manifestURL(r.Subject.Digest.String()), q.with(acceptImages))
	if err != nil || a.Status == http.StatusOK {
		return nil, err
	}
	return a, nil
}

// with returns the client's credential and what is accepted.
func (q asked) with(accept string) http.Header {
	h := http.Header{"Accept": {accept}}
	for _, name := range []string{"Authorization", "User-Agent"} {
		if values := q.header.Values(name); len(values) > 0 {
			h[name] = values
		}
	}
	return h
}

// answer makes an answer of ours.
func (q asked) answer(mediaType string, d digest.Digest, data []byte, size int64) *exchange.Answer {
	h := http.Header{
		"Content-Type": {mediaType}, "Content-Length": {strconv.FormatInt(size, 10)},
		"Docker-Content-Digest": {d.String()}, "Docker-Distribution-Api-Version": {"registry/2.0"},
	}
	if q.method == http.MethodHead {
		data = nil
	}
	return &exchange.Answer{Status: http.StatusOK, Header: h, Body: data}
}

// find returns what m has under a name, nil if it is nothing that is offered.
func (a *Accelerator) find(m map[name]named, n name) *named {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := m[n]
	if !ok || !a.offeredLocked(e.rec) {
		return nil
	}
	return &e
}

// manifest answers for artifacts and signatures, and for the tags of theirs that
// the registry does not have.
func (a *Accelerator) manifest(ctx context.Context, q asked) (*exchange.Answer, error) {
	if e := a.find(a.table.names, name{q.place, q.reference}); e != nil {
		if _, tagged := q.digest(); !tagged {
			if answer, err := q.pass(ctx); err != nil || answer.Status != http.StatusNotFound {
				return answer, err
			}
		}
		if refusal, err := q.admit(ctx, e.rec); err != nil || refusal != nil {
			return refusal, err
		}
		return q.answer(e.desc.MediaType, e.desc.Digest, e.data, e.desc.Size), nil
	}
	a.mu.Lock()
	subject, ok := a.table.fallback[name{q.place, q.reference}]
	a.mu.Unlock()
	if ok {
		if e := a.find(a.table.referrers, name{q.place, subject.String()}); e != nil {
			return a.fallback(ctx, q, e)
		}
	}
	answer, err := q.pass(ctx)
	if err == nil && answer.Status == http.StatusOK && q.method == http.MethodGet {
		a.seen(q, answer)
	}
	return answer, err
}

// fallback answers for the tag that lists referrers where there is no API.
func (a *Accelerator) fallback(ctx context.Context, q asked, e *named) (*exchange.Answer, error) {
	theirs, err := q.next(ctx, http.MethodGet, q.url, q.with(v1.MediaTypeImageIndex))
	if err != nil || theirs.Status != http.StatusOK && theirs.Status != http.StatusNotFound {
		return theirs, err
	}
	refusal, err := q.admit(ctx, e.rec)
	if err != nil {
		return nil, err
	}
	var list []byte
	if theirs.Status == http.StatusOK {
		list = theirs.Body
	}
	merged, _, err := artifact.AddReferrer(list, e.desc)
	if refusal != nil || err != nil {
		return q.pass(ctx) // as if there were nothing here
	}
	return q.answer(v1.MediaTypeImageIndex, digest.FromBytes(merged), merged, int64(len(merged))), nil
}

// referrers adds to what the registry says, or to what its tag for lists says if
// it has no API.
func (a *Accelerator) referrers(ctx context.Context, q asked) (*exchange.Answer, error) {
	e := a.find(a.table.referrers, name{q.place, q.reference})
	theirs, err := q.pass(ctx)
	if err != nil || e == nil {
		return theirs, err
	}
	isList := theirs.Status == http.StatusOK && mediaType(theirs.Header) == v1.MediaTypeImageIndex
	if !isList && !noSuchAPI(theirs.Status) {
		return theirs, nil
	}
	refusal, err := q.admit(ctx, e.rec)
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		if !isList && (refusal.Status == http.StatusUnauthorized || refusal.Status == http.StatusForbidden) {
			return refusal, nil
		}
		return theirs, nil
	}
	list, h := theirs.Body, theirs.Header.Clone()
	filter := q.query.Get("artifactType")
	if !isList {
		if list, err = q.tagged(ctx, filter); err != nil {
			return nil, err
		}
		h = http.Header{"Content-Type": {v1.MediaTypeImageIndex}, "Docker-Distribution-Api-Version": {"registry/2.0"}}
		if filter != "" {
			h.Set("OCI-Filters-Applied", "artifactType")
		}
	}
	return a.merge(theirs, list, h, filter, e), nil
}

// merge adds e to a list of referrers.
func (a *Accelerator) merge(theirs *exchange.Answer, list []byte, h http.Header, filter string, e *named) *exchange.Answer {
	if filter == "" || filter == e.desc.ArtifactType {
		merged, _, err := artifact.AddReferrer(list, e.desc)
		if err != nil {
			a.o.Log.Warn("the registry's list of referrers cannot be added to", "repository", e.rec.place().String(), "error", err)
			return theirs
		}
		list = merged
	}
	if list == nil {
		list = emptyList
	}
	h.Set("Content-Length", strconv.Itoa(len(list)))
	return &exchange.Answer{Status: http.StatusOK, Header: h, Body: list}
}

var emptyList = []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[]}`)

// tagged returns the list of referrers that the registry has under the tag for
// it, of one type if filter is set; nil if there is none.
func (q asked) tagged(ctx context.Context, filter string) ([]byte, error) {
	tag := artifact.FallbackTag(digest.Digest(q.reference))
	theirs, err := q.next(ctx, http.MethodGet, q.manifestURL(tag), q.with(v1.MediaTypeImageIndex))
	if err != nil {
		return nil, err
	}
	if theirs.Status != http.StatusOK {
		return nil, nil
	}
	if filter == "" {
		return theirs.Body, nil
	}
	found, err := artifact.Referrers(theirs.Body, filter)
	if err != nil {
		return nil, nil //nolint:nilerr // the tag names something else
	}
	var list []byte
	for _, d := range found {
		if list, _, err = artifact.AddReferrer(list, d); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// blob answers whether a blob that was made here is there.
func (a *Accelerator) blob(ctx context.Context, q asked) (*exchange.Answer, error) {
	d, ok := q.digest()
	if !ok {
		return q.pass(ctx)
	}
	a.mu.Lock()
	r, size := a.table.needing(q.place, task.ID(d))
	ok = r != nil && a.offeredLocked(r)
	a.mu.Unlock()
	if !ok {
		return q.pass(ctx)
	}
	if refusal, err := q.admit(ctx, r); err != nil || refusal != nil {
		return refusal, err
	}
	answer := q.answer("application/octet-stream", d, nil, size)
	answer.Header.Set("Accept-Ranges", "bytes")
	return answer, nil
}

// seen queues the image of a manifest that a client got, if its repository is
// listed.
func (a *Accelerator) seen(q asked, answer *exchange.Answer) {
	if !a.listed(q.place) || !isImage(answer.Body) {
		return
	}
	a.enqueue(Image{
		Base: q.base, Repo: q.repo, Digest: digest.FromBytes(answer.Body).String(), OwnToo: true,
		Credential: origin.Credential{Authorization: q.header.Get("Authorization")},
	})
}

// isImage tells the manifests of images from indexes and artifacts.
func isImage(data []byte) bool {
	m, err := artifact.ParseSubject(data)
	if err != nil || m.ArtifactType != "" || m.Subject != nil || len(m.Layers) == 0 {
		return false
	}
	switch m.Config.MediaType {
	case v1.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
		return true
	}
	return false
}

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// noSuchAPI reports answers of registries that do not know the path; some send a
// web page.
func noSuchAPI(status int) bool {
	switch status {
	case http.StatusOK, http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}
