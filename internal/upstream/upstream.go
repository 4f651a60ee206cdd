// Package upstream says where registries are: from a list of HOST=URL entries,
// or by convention.
package upstream

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
)

// hostForm is HOST or HOST:PORT, with IPv6 addresses in brackets.
var hostForm = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$`)

// ValidHost reports whether s has the form of a registry's name.
func ValidHost(s string) bool { return len(s) <= 255 && hostForm.MatchString(s) }

// repositoryForm is that of the distribution specification.
var repositoryForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)

// ValidRepository reports whether s has the form of a repository's name.
func ValidRepository(s string) bool { return len(s) <= 255 && repositoryForm.MatchString(s) }

// List gives registries their upstreams.
type List struct {
	upstream map[string]string // base URL without a trailing slash
}

// Parse reads entries of the form HOST or HOST=URL. Without a URL the
// upstream is https://HOST, http://HOST on loopback, and
// https://registry-1.docker.io for docker.io.
func Parse(entries []string) (*List, error) {
	r := &List{upstream: map[string]string{}}
	for _, entry := range entries {
		host, base, given := strings.Cut(entry, "=")
		if !ValidHost(host) {
			return nil, fmt.Errorf("registry %q: want HOST[:PORT] or HOST[:PORT]=URL", entry)
		}
		if !given {
			base = Default(host)
		}
		u, err := url.Parse(base)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return nil, fmt.Errorf("registry %q: its upstream must be an http or https URL without credentials", entry)
		}
		r.upstream[host] = strings.TrimRight(base, "/")
	}
	return r, nil
}

// Default returns the base URL of a registry by convention: see Parse.
func Default(host string) string {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	switch {
	case host == "docker.io":
		return "https://registry-1.docker.io"
	case name == "localhost", ip != nil && ip.IsLoopback():
		return "http://" + host
	}
	return "https://" + host
}

// Of returns the base URL of a registry, false if it is not on the list.
func (r *List) Of(registry string) (string, bool) {
	base, ok := r.upstream[registry]
	return base, ok
}
