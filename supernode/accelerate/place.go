package accelerate

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/upstream"
)

// place is a repository at a registry.
type place struct {
	base string // URL of the registry, up to /v2/
	repo string
}

func newPlace(base, repo string) place { return place{strings.TrimRight(base, "/"), repo} }

func (p place) manifestURL(reference string) string {
	return p.base + "/v2/" + p.repo + "/manifests/" + reference
}

func (p place) blobURL(id task.ID) string { return origin.BlobURL(p.base, p.repo, string(id)) }

// host is that of the registry's URL.
func (p place) host() string {
	u, err := url.Parse(p.base)
	if err != nil {
		return ""
	}
	return u.Host
}

// String names the repository for people.
func (p place) String() string { return p.host() + "/" + p.repo }

// target is what a URL of the distribution API names.
type target struct {
	place
	kind      string // manifests, blobs or referrers
	reference string // tag or digest
	query     url.Values
}

// parseTarget takes the URL of a small registry request apart, false if it is
// about something else.
func parseTarget(raw string) (target, bool) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.RawPath != "" {
		return target{}, false
	}
	prefix, rest, ok := strings.Cut(u.Path, "/v2/")
	if !ok {
		return target{}, false
	}
	parts := strings.Split(rest, "/")
	if len(parts) < 3 {
		return target{}, false
	}
	n := len(parts)
	t := target{kind: parts[n-2], reference: parts[n-1], query: u.Query()}
	t.place = newPlace((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: prefix}).String(), strings.Join(parts[:n-2], "/"))
	return t, t.reference != "" && (t.kind == "manifests" || t.kind == "blobs" || t.kind == "referrers")
}

// digest is the reference, if it is one that the cache can check.
func (t target) digest() (digest.Digest, bool) {
	d := digest.Digest(t.reference)
	return d, d.Validate() == nil && d.Algorithm() == digest.SHA256
}

// pattern is a repository, or all below a prefix of whole path elements.
type pattern struct {
	host, path string // path is "" only with below
	below      bool
}

// parsePatterns reads entries of the form HOST/REPO, HOST/PREFIX/* or HOST/*.
func parsePatterns(entries []string) ([]pattern, error) {
	var all []pattern
	for _, entry := range entries {
		name, below := strings.CutSuffix(entry, "/*")
		host, path, _ := strings.Cut(name, "/")
		p := pattern{host: canonicalHost(host), path: path, below: below}
		if !upstream.ValidHost(host) || strings.ContainsAny(path, "*:@ ") || path == "" && !below || path != strings.ToLower(path) {
			return nil, fmt.Errorf("%q: want HOST/REPO, HOST/PREFIX/* for all below a prefix, or HOST/*, without a tag", entry)
		}
		if !below {
			p.path = canonicalPath(p.host, path)
		}
		all = append(all, p)
	}
	return all, nil
}

func (p pattern) matches(host, repo string) bool {
	switch {
	case canonicalHost(host) != p.host:
		return false
	case !p.below:
		return canonicalPath(p.host, repo) == p.path
	}
	return p.path == "" || strings.HasPrefix(repo, p.path+"/")
}

// dockerHub is the name of that registry, whatever its servers are called.
const dockerHub = "docker.io"

func canonicalHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return host
}

// canonicalPath adds what Docker Hub's official images are spelt without.
func canonicalPath(host, path string) string {
	if host == dockerHub && !strings.Contains(path, "/") {
		return "library/" + path
	}
	return path
}
