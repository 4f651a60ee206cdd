package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// mirror sends requests for registries to the daemon's mirror.
type mirror struct{ inner *http.Transport }

func newMirror(socket string) *mirror {
	return &mirror{&http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
			}
			return conn, err
		},
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}}
}

func (m *mirror) close() { m.inner.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (m *mirror) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/v2" && !strings.HasPrefix(r.URL.Path, "/v2/") {
		closeBody(r)
		return nil, fmt.Errorf("%s %s: only registries can be asked through dfdaemon", r.Method, r.URL.Redacted())
	}
	out := r.Clone(r.Context())
	q := out.URL.Query()
	q.Set("ns", registry(r.URL.Host))
	out.URL.RawQuery = q.Encode()
	out.URL.Scheme, out.URL.Host, out.Host, out.RequestURI = "http", "dfdaemon", "", ""
	resp, err := m.inner.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	resp.Request = r
	return resp, nil
}

// registry is the name of a registry as users write it.
func registry(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close() // as RoundTrip has to; nothing was read
	}
}
