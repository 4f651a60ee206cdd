package mirror

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// answer is the registry's answer to a small request. Body is nil and stream
// set when it is too large to hold.
type answer struct {
	status int
	header http.Header
	body   []byte
	stream io.ReadCloser
	cred   string // key of what it was asked with, for grants
}

// ask asks the registry, through the supernode if there is one.
func (m *Mirror) ask(c *call, method, url string) (answer, error) {
	header := pick(c.r.Header, headersUp)
	if method == http.MethodHead {
		header.Del("Range")
	}
	resp, err := m.o.Exchange.Exchange(c.r.Context(), &apiv1.ExchangeRequest{
		Method: method, Url: url, Headers: wire.FromHeader(header),
	})
	switch {
	case err == nil:
		return answer{status: int(resp.Status), header: wire.Header(resp.Headers), body: resp.Body}, nil
	case errors.Is(err, swarm.ErrUnreachable), swarm.IsTooLarge(err):
		return m.askAlone(c, method, url, header)
	}
	return answer{}, err
}

// maxHeld is the largest answer that is held in memory; what is larger is
// passed on as it comes.
const maxHeld = 8 << 20

func (m *Mirror) askAlone(c *call, method, url string, header http.Header) (answer, error) {
	resp, err := m.o.Origin.Do(c.r.Context(), method, url, header)
	if err != nil {
		return answer{}, err
	}
	if resp.ContentLength > maxHeld {
		return answer{status: resp.StatusCode, header: resp.Header, stream: resp.Body}, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHeld+1))
	if err == nil && len(body) > maxHeld {
		err = fmt.Errorf("the answer is larger than %d bytes", maxHeld)
	}
	if err != nil {
		return answer{}, fmt.Errorf("reading the registry's answer: %w", err)
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: body}, nil
}

// pass answers with what the registry says.
func (m *Mirror) pass(c *call) {
	a, err := m.ask(c, c.r.Method, c.url())
	if err != nil || a.status >= 500 {
		m.withoutRegistry(c, a, err)
		return
	}
	if a.stream != nil {
		defer a.stream.Close()
	}
	m.refused(c, a.status)
	if a.status < 300 && (c.kind == "manifests" || c.kind == "blobs") {
		m.accept(c)
	}
	a.cred = c.credKey()
	m.deliver(c, a)
}

// deliver checks and remembers a registry's answer, and sends it.
func (m *Mirror) deliver(c *call, a answer) {
	if err := verify(c, a); err != nil {
		m.o.Log.Error("refused the registry's answer", "object", c.object(), "error", err)
		refuse(c.w, http.StatusBadGateway, "MANIFEST_INVALID", err.Error())
		return
	}
	if a.status == http.StatusOK && c.kind == "manifests" {
		m.remember(c, a)
	}
	send(c, a)
}

// verify compares content that is named by digest with its name, and other
// manifests with the digest that the registry says they have.
func verify(c *call, a answer) error {
	if a.status != http.StatusOK || c.kind != "manifests" || c.r.Method != http.MethodGet {
		return nil
	}
	if a.stream != nil {
		return fmt.Errorf("%s: the registry sent a manifest of more than %d bytes", c.object(), maxHeld)
	}
	want := c.ref
	if !strings.Contains(want, ":") {
		if want = a.header.Get("Docker-Content-Digest"); want == "" {
			return nil
		}
	}
	d, err := digest.Parse(want)
	if err != nil || !d.Algorithm().Available() {
		return nil //nolint:nilerr // an algorithm we do not know: the client's to judge
	}
	if got := d.Algorithm().FromBytes(a.body); got != d {
		return fmt.Errorf("%s: the registry sent a manifest with digest %s, not %s", c.object(), got, d)
	}
	return nil
}

// remember notes what is needed to serve a manifest while the registry is down:
// that the client was let into it, or, for a HEAD, where its tag leads, since
// containerd then fetches by digest only.
func (m *Mirror) remember(c *call, a answer) {
	isTag := !strings.Contains(c.ref, ":")
	if c.r.Method == http.MethodHead {
		d := a.header.Get("Docker-Content-Digest")
		if !isTag || d == "" {
			return
		}
		if err := m.o.Grants.Tag(c.registry, c.repo, c.ref, d); err != nil {
			m.o.Log.Warn("a tag will not be served while the registry is down", "object", c.object(), "error", err)
		}
		return
	}
	g := grant.Manifest{
		Registry: c.registry, Repo: c.repo, Digest: digest.FromBytes(a.body).String(),
		MediaType: a.header.Get("Content-Type"), Body: a.body,
	}
	if isTag {
		g.Tag = c.ref
	}
	if err := m.o.Grants.Add(g, a.cred); err != nil {
		m.o.Log.Warn("a manifest will not be served while the registry is down", "object", c.object(), "error", err)
	}
}

// send passes an answer on.
func send(c *call, a answer) {
	for name, values := range pick(a.header, headersDown) {
		c.w.Header()[name] = values
	}
	length := a.header.Get("Content-Length")
	if a.stream == nil && c.r.Method == http.MethodGet {
		length = strconv.Itoa(len(a.body))
	}
	if length != "" {
		c.w.Header().Set("Content-Length", length)
	}
	c.w.WriteHeader(a.status)
	if c.r.Method == http.MethodHead {
		return
	}
	if a.stream == nil {
		_, _ = c.w.Write(a.body) // the client has gone, or it has not
		return
	}
	if _, err := io.Copy(c.w, a.stream); err != nil {
		panic(http.ErrAbortHandler) // the only way to tell the client
	}
}

// withoutRegistry answers when the registry cannot be asked, or only has
// trouble to report: with what was granted before, or the trouble.
func (m *Mirror) withoutRegistry(c *call, a answer, err error) {
	if a.stream != nil {
		defer a.stream.Close()
	}
	if c.kind == "" { // whoever asks whether a registry is here
		c.w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		c.w.WriteHeader(http.StatusOK)
		return
	}
	if c.kind == "manifests" {
		if g, ok := m.o.Grants.Manifest(c.registry, c.repo, c.ref, c.credKey(), c.node); ok {
			m.o.Log.Warn("served a manifest from an earlier grant: the registry cannot be asked", "object", c.object(), "error", err, "status", a.status)
			m.sendGranted(c, g)
			return
		}
	}
	if err == nil {
		send(c, a)
		return
	}
	m.o.Log.Warn("the registry cannot be asked", "object", c.object(), "error", err)
	c.w.Header().Set("Retry-After", "5")
	refuse(c.w, http.StatusServiceUnavailable, "UNAVAILABLE", fmt.Sprintf("%s: the registry cannot be asked: %v", c.object(), err))
}

func (m *Mirror) sendGranted(c *call, g grant.Manifest) {
	h := c.w.Header()
	h.Set("Content-Type", g.MediaType)
	h.Set("Docker-Content-Digest", g.Digest)
	h.Set("Content-Length", strconv.Itoa(len(g.Body)))
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method == http.MethodGet {
		_, _ = c.w.Write(g.Body)
	}
}
