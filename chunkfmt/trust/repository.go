package trust

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	// hostForm is HOST or HOST:PORT, with IPv6 addresses in brackets.
	hostForm = regexp.MustCompile(`^(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?$`)
	// pathForm is a repository's name, as the distribution specification has it.
	pathForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
)

const maxRepository = 512 // bytes, host included

// pattern is a repository, or all below a prefix of whole path elements.
type pattern struct {
	host string
	path string // "" only with below
	// below matches what begins with path and a slash, not path itself.
	below bool
}

// parsePattern reads HOST/REPO, HOST/PREFIX/* or HOST/*.
func parsePattern(text string) (pattern, error) {
	p := pattern{}
	name := text
	if prefix, ok := strings.CutSuffix(text, "/*"); ok {
		name, p.below = prefix, true
	}
	var found bool
	p.host, p.path, found = strings.Cut(name, "/")
	switch {
	case len(text) > maxRepository:
		return p, fmt.Errorf("repository %.80q…: longer than %d bytes", text, maxRepository)
	case strings.Contains(text, "://"):
		return p, fmt.Errorf("repository %q: leave out the scheme", text)
	case strings.Contains(p.path, ":"), strings.Contains(p.path, "@"):
		return p, fmt.Errorf("repository %q: leave out the tag or digest", text)
	case strings.Contains(name, "*"):
		return p, fmt.Errorf("repository %q: want HOST/REPO, or HOST/PREFIX/* for all below; * can stand for the last element only", text)
	}
	p.host = canonicalHost(p.host)
	switch {
	case !validHost(p.host):
		return p, fmt.Errorf("repository %q: want the registry's host first, such as docker.io/library/nginx", text)
	case !found && p.below: // HOST/*
		return p, nil
	case !pathForm.MatchString(p.path):
		return p, fmt.Errorf("repository %q: want HOST/REPO or HOST/PREFIX/*, in lower case", text)
	}
	if !p.below {
		p.path = canonicalPath(p.host, p.path)
	}
	return p, nil
}

// matches reports whether the pattern covers HOST/REPO. Whatever does not have
// that form is not covered.
func (p pattern) matches(repository string) bool {
	host, path, _ := strings.Cut(repository, "/")
	host = canonicalHost(host)
	if host != p.host || len(repository) > maxRepository || !validHost(host) || !pathForm.MatchString(path) {
		return false
	}
	path = canonicalPath(host, path)
	if !p.below {
		return path == p.path
	}
	return p.path == "" || strings.HasPrefix(path, p.path+"/")
}

// validHost tells hosts from the first element of names without one, by the
// rule that container runtimes use.
func validHost(host string) bool {
	return hostForm.MatchString(host) && (strings.ContainsAny(host, ".:") || host == "localhost")
}

// canonicalHost gives Docker Hub its one name.
func canonicalHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// canonicalPath adds what Docker Hub's official images are spelt without.
func canonicalPath(host, path string) string {
	if host == "docker.io" && !strings.Contains(path, "/") {
		return "library/" + path
	}
	return path
}
