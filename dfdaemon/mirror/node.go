package mirror

import (
	"math"
	"net/http"
	"strings"

	"github.com/damselfly-io/damselfly/dfdaemon/authority"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/internal/httprange"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// nodePass answers the node itself with what the registry says, or has said of
// what cannot change.
func (m *Mirror) nodePass(c *call) {
	if c.kind == "" {
		c.w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		c.w.WriteHeader(http.StatusOK)
		return
	}
	if c.kind == "manifests" && strings.Contains(c.ref, ":") {
		if g, ok := m.o.Grants.Manifest(c.registry, c.repo, c.ref, "", true); ok {
			m.sendGranted(c, g)
			return
		}
	}
	got, err := m.o.Authority.Ask(c.r.Context(), c.repository(), c.r.Method, c.path(), c.r.Header)
	if err != nil {
		m.withoutRegistry(c, answer{}, err)
		return
	}
	if got.Status >= 400 {
		for name, values := range pick(got.Header, headersDown) {
			c.w.Header()[name] = values
		}
		refuse(c.w, got.Status, c.codeOf(got.Status), c.object()+": the registry refuses: "+got.Message)
		return
	}
	a := answer{status: got.Status, header: got.Header, body: got.Body, cred: grant.NodeKey}
	if got.Credential == (origin.Credential{}) {
		a.cred = "" // anybody gets it
	}
	m.deliver(c, a)
}

// nodeBlob serves a blob to the node itself.
func (m *Mirror) nodeBlob(c *call) {
	id, ok := c.blobID()
	if !ok {
		refuse(c.w, http.StatusBadRequest, "DIGEST_INVALID", c.object()+": only SHA-256 digests are served to the node")
		return
	}
	req := engine.Request{Source: wire.Source{ID: id}, Priority: pieces.Demand}
	rng := c.r.Header.Get("Range")
	req.Whole = rng == ""
	// One of the last bytes waits for the length to be known.
	if off, n, partial, err := httprange.Parse(rng, math.MaxInt64); err == nil && partial && !strings.HasPrefix(rng, "bytes=-") {
		req.Ranges = []engine.Range{{Offset: off, Length: n}}
	}
	ctx := c.r.Context()
	err := m.o.Authority.Try(ctx, c.repository(), id, func(at authority.Attempt) error {
		h, err := m.o.Authority.Open(ctx, m.o.Engine, at, req)
		if err != nil {
			return err
		}
		defer h.Close()
		return m.stream(ctx, c, h)
	})
	if err != nil {
		m.failed(c, err)
	}
}

// codeOf is the distribution specification's code for a status of the call.
func (c *call) codeOf(status int) string {
	if status == http.StatusNotFound && c.kind == "manifests" {
		return "MANIFEST_UNKNOWN"
	}
	return codeOf(status)
}
