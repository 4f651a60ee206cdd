package preheat

import (
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Upstream returns the base URL under which a registry is reached, and false if
// it is the usual one. Registries are named as in references ("ghcr.io",
// "127.0.0.1:5000"); Docker Hub is "docker.io".
type Upstream func(registry string) (baseURL string, ok bool)

const (
	hub    = "docker.io"
	hubURL = "https://registry-1.docker.io"
)

// The grammar of the OCI distribution specification.
var (
	repoPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

const maxRepo = 255

// imageRef is an image in a registry.
type imageRef struct {
	base      string // URL of the registry, without /v2/
	repo      string
	reference string // tag or digest
}

func (i *imageRef) manifestURL(reference string) string {
	return strings.TrimRight(i.base, "/") + "/v2/" + i.repo + "/manifests/" + reference
}

func (i *imageRef) blobURL(id task.ID) string { return origin.BlobURL(i.base, i.repo, string(id)) }

// String names the image for people.
func (i *imageRef) String() string {
	sep := ":"
	if strings.Contains(i.reference, ":") {
		sep = "@"
	}
	_, host, _ := strings.Cut(i.base, "://")
	return host + "/" + i.repo + sep + i.reference
}

// parseRef reads HOST/REPO[:TAG|@DIGEST]. Without a host it is Docker Hub, as
// everywhere.
func parseRef(ref string, upstream Upstream) (*imageRef, error) {
	if strings.Contains(ref, "://") {
		return nil, invalid("ref", "%.200q is a URL: want HOST/REPO[:TAG|@DIGEST], or give the URL of the manifest as url", ref)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, invalid("ref", "%.200q is not HOST/REPO[:TAG|@DIGEST]: %.200v", ref, err)
	}
	host := parsed.Context().RegistryStr()
	if host == name.DefaultRegistry {
		host = hub
	}
	base := defaultBase(host)
	if u, ok := upstream.lookup(host); ok {
		base = u
	}
	if _, err := parseURL(base); err != nil {
		return nil, invalid("ref", "%.200q is on no host that can be reached: its %v", ref, err)
	}
	return newImageRef("ref", base, parsed.Context().RepositoryStr(), parsed.Identifier())
}

// parseManifestURL reads https://HOST[/PREFIX]/v2/REPO/manifests/REFERENCE,
// which is how Harbor names an image.
func parseManifestURL(raw string, upstream Upstream) (*imageRef, error) {
	u, err := parseURL(raw)
	if err != nil {
		return nil, err
	}
	prefix, rest, ok := strings.Cut(u.Path, "/v2/")
	i := strings.LastIndex(rest, "/manifests/")
	if !ok || i < 0 || u.RawQuery != "" || u.RawPath != "" {
		return nil, invalid("url", "want the URL of an image's manifest, https://HOST/v2/REPO/manifests/TAG or …/manifests/sha256:…")
	}
	repo, reference := rest[:i], rest[i+len("/manifests/"):]
	base, mapped := upstream.lookup(u.Host)
	if !mapped {
		base = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: prefix}).String()
	}
	return newImageRef("url", base, repo, reference)
}

func (f Upstream) lookup(registry string) (string, bool) {
	if f == nil {
		return "", false
	}
	return f(registry)
}

func newImageRef(field, base, repo, reference string) (*imageRef, error) {
	if len(repo) > maxRepo || !repoPattern.MatchString(repo) {
		return nil, invalid(field, "%.100q is no name of a repository", repo)
	}
	if strings.Contains(reference, ":") {
		if _, ok := blobID(reference); !ok {
			return nil, invalid(field, "digest %.100q: want sha256:<64 hex digits>", reference)
		}
	} else if !tagPattern.MatchString(reference) {
		return nil, invalid(field, "%.100q is no tag", reference)
	}
	return &imageRef{base: base, repo: repo, reference: reference}, nil
}

// blobID accepts sha256 digests alone: they are what the cache can check.
func blobID(digest string) (task.ID, bool) {
	id, err := task.ParseID(digest)
	if err != nil {
		return "", false
	}
	_, ok := id.Digest()
	return id, ok
}

// defaultBase returns where a registry usually is. Plain HTTP is for loopback
// only: elsewhere a password could be read on the way.
func defaultBase(registry string) string {
	if registry == hub {
		return hubURL
	}
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	if host == "localhost" || ip != nil && ip.IsLoopback() {
		return "http://" + registry
	}
	return "https://" + registry
}
