package mirror

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/upstream"
)

// request is a parsed request of the distribution API.
type request struct {
	registry string
	repo     string
	kind     string // manifests, blobs, tags or referrers; "" for /v2/ itself
	ref      string // tag, digest, or "list"
	query    string // without ns
}

// Forms of names, from the distribution specification.
var (
	tagForm    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestForm = regexp.MustCompile(`^[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$`)
)

// badName is a name that no registry has.
type badName struct{ what, name string }

func (e *badName) Error() string { return fmt.Sprintf("invalid %s %q", e.what, clip(e.name)) }

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// errUnknownPath is returned for a path outside the API.
var errUnknownPath = errors.New("no such path in the distribution API")

// parse reads the path and query of a request.
func parse(u *url.URL) (request, error) {
	rest, ok := strings.CutPrefix(u.Path, "/v2")
	if !ok || rest != "" && rest[0] != '/' {
		return request{}, errUnknownPath
	}
	r := request{registry: "docker.io"}
	q := u.Query()
	ns := q.Get("ns")
	q.Del("ns")
	r.query = q.Encode()
	if ns != "" {
		if !upstream.ValidHost(ns) {
			return request{}, &badName{"registry in ns", ns}
		}
		r.registry = ns
	}
	rest = strings.TrimPrefix(rest, "/")
	if rest == "" {
		return r, nil
	}
	if !r.split(rest) {
		return request{}, errUnknownPath
	}
	if first, repo, more := strings.Cut(r.repo, "/"); ns == "" && more && strings.ContainsAny(first, ".:") && upstream.ValidHost(first) {
		// "quay.io/org/app": no repository of docker.io has a dot or a port in
		// its first element.
		r.registry, r.repo = first, repo
	}
	return r, r.check()
}

// split takes apart <repo>/<kind>/<ref>.
func (r *request) split(path string) bool {
	if repo, ok := strings.CutSuffix(path, "/tags/list"); ok {
		r.repo, r.kind, r.ref = repo, "tags", "list"
		return true
	}
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return false
	}
	head, ref := path[:i], path[i+1:]
	j := strings.LastIndexByte(head, '/')
	if j < 0 {
		return false
	}
	r.repo, r.kind, r.ref = head[:j], head[j+1:], ref
	return r.kind == "manifests" || r.kind == "blobs" || r.kind == "referrers"
}

func (r *request) check() error {
	switch {
	case !upstream.ValidRepository(r.repo):
		return &badName{"repository", r.repo}
	case r.kind == "manifests" && !tagForm.MatchString(r.ref) && !digestForm.MatchString(r.ref),
		(r.kind == "blobs" || r.kind == "referrers") && !digestForm.MatchString(r.ref):
		return &badName{"reference", r.ref}
	}
	return nil
}

// path is the request's path at the registry.
func (r *request) path() string {
	if r.kind == "" {
		return "/v2/"
	}
	p := "/v2/" + r.repo + "/" + r.kind + "/" + r.ref
	if r.query != "" {
		p += "?" + r.query
	}
	return p
}

// blobID returns the task of a blob, false for a digest other than SHA-256.
func (r *request) blobID() (task.ID, bool) {
	id, err := task.ParseID(r.ref)
	if err != nil {
		return "", false
	}
	_, ok := id.Digest()
	return id, ok
}

// headersUp are those of a client that the registry gets.
var headersUp = []string{"Accept", "Authorization", "If-None-Match", "User-Agent", "Range"}

// headersDown are those of the registry that a client gets.
var headersDown = []string{
	"Content-Type", "Docker-Content-Digest", "Docker-Distribution-Api-Version", "Etag", "Link",
	"Accept-Ranges", "Content-Range", "Oci-Subject", "Oci-Filters-Applied", "Retry-After", "Www-Authenticate", "Ratelimit-Limit", "Ratelimit-Remaining",
}

func pick(h http.Header, names []string) http.Header {
	out := http.Header{}
	for _, name := range names {
		for _, v := range h.Values(name) {
			out.Add(name, v)
		}
	}
	return out
}
