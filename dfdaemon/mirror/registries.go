package mirror

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Registries is the allow-list: the upstream of each registry that may be
// mirrored.
type Registries struct {
	upstream map[string]string // base URL without a trailing slash
}

// ParseRegistries reads entries of the form HOST or HOST=URL. Without a URL the
// upstream is https://HOST, http://HOST on loopback, and
// https://registry-1.docker.io for docker.io.
func ParseRegistries(entries []string) (*Registries, error) {
	r := &Registries{upstream: map[string]string{}}
	for _, entry := range entries {
		host, base, given := strings.Cut(entry, "=")
		if !registryForm.MatchString(host) {
			return nil, fmt.Errorf("registry %q: want HOST[:PORT] or HOST[:PORT]=URL", entry)
		}
		if !given {
			base = defaultUpstream(host)
		}
		u, err := url.Parse(base)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return nil, fmt.Errorf("registry %q: its upstream must be an http or https URL without credentials", entry)
		}
		r.upstream[host] = strings.TrimRight(base, "/")
	}
	return r, nil
}

func defaultUpstream(host string) string {
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

// Upstream returns the base URL of a registry, false if it is not allowed.
func (r *Registries) Upstream(registry string) (string, bool) {
	base, ok := r.upstream[registry]
	return base, ok
}
