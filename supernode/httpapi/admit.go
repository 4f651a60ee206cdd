package httpapi

import (
	"net"
	"net/http"
	"strings"

	"github.com/damselfly-io/damselfly/internal/secret"
)

// admit decides who may use the API.
func (a *API) admit(r *http.Request) error {
	if a.o.Token != "" {
		return a.checkToken(r)
	}
	switch {
	case !isLocal(r):
		return problem(http.StatusForbidden, "local_only",
			"this supernode has no API token and serves clients on its own machine only: start it with --api-token-file, and send the token as a bearer token")
	case proxied(r):
		return problem(http.StatusForbidden, "local_only",
			"this request came through a proxy, which hides where it is from: start the supernode with --api-token-file, and send the token as a bearer token")
	case !namedByAddress(r.Host):
		// A page of any web site can make its own name lead to this machine.
		return problem(http.StatusForbidden, "wrong_host",
			"without an API token the supernode is to be called localhost or by address, not %.100q", r.Host)
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return problem(http.StatusForbidden, "cross_origin", "requests from other web sites are refused: %v", err)
	}
	return nil
}

func (a *API) checkToken(r *http.Request) error {
	given, ok := token(r)
	switch {
	case !ok:
		return problem(http.StatusUnauthorized, "token_missing",
			"this API needs a token: send the header \"Authorization: Bearer TOKEN\", with the token of the supernode's --api-token-file")
	case !secret.Equal(given, a.o.Token):
		return problem(http.StatusUnauthorized, "token_wrong",
			"the token is not that of the supernode's --api-token-file")
	}
	return nil
}

// token returns the token in the Authorization header: Harbor sends it as a
// bearer token or as a password.
func token(r *http.Request) (string, bool) {
	if _, password, ok := r.BasicAuth(); ok {
		return password, true
	}
	scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(value), ok && strings.EqualFold(scheme, "Bearer")
}

func isLocal(r *http.Request) bool {
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && addr.Network() == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func proxied(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return true
		}
	}
	return false
}

func namedByAddress(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.EqualFold(host, "localhost") || net.ParseIP(strings.Trim(host, "[]")) != nil
}
