package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/authority"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/upstream"
)

// Exchanger performs small registry requests through the supernode.
type Exchanger interface {
	Exchange(ctx context.Context, r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error)
}

// Options configures a Mirror. All but Log, Now and AuthTTL are required.
type Options struct {
	Engine     *engine.Engine
	Exchange   Exchanger
	Origin     *origin.Client // for when no supernode is reachable
	Registries *upstream.List // the allow-list
	Grants     *grant.Store
	// Authority is told what clients were let in with, and serves Node.
	Authority *authority.Authority
	Log       *slog.Logger
	Now       func() time.Time
	// AuthTTL is how long the registry's yes to a credential counts for a
	// repository; default 60 s.
	AuthTTL time.Duration
	// Served is told of every answer.
	Served func(kind string, status int)
}

// Mirror is the registry mirror. It is an http.Handler.
type Mirror struct {
	o Options

	mu       sync.Mutex
	accepted map[string]time.Time // until when, by repository and credential
}

// New returns a mirror.
func New(o Options) *Mirror {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.AuthTTL == 0 {
		o.AuthTTL = 60 * time.Second
	}
	if o.Served == nil {
		o.Served = func(string, int) {}
	}
	return &Mirror{o: o, accepted: map[string]time.Time{}}
}

// call is one request being answered.
type call struct {
	request
	base string // the registry's URL
	cred origin.Credential
	node bool // asked by the node's own programs
	w    http.ResponseWriter
	r    *http.Request
}

func (c *call) url() string { return c.base + c.path() }

// credKey names the credential without telling it; "" for none.
func (c *call) credKey() string {
	if c.cred == (origin.Credential{}) {
		return ""
	}
	return c.cred.Key()
}

// repository is the call's, as package authority has it.
func (c *call) repository() authority.Repository {
	return authority.Repository{Registry: c.registry, Name: c.repo, Base: c.base}
}

// object names the call's object in messages.
func (c *call) object() string {
	if c.kind == "" {
		return c.registry
	}
	return c.registry + "/" + c.repo + " " + c.kind + " " + c.ref
}

// ServeHTTP answers one request of a container runtime.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.serve(w, r, false) //nolint:contextcheck // the context is that of the request
}

// Node returns the mirror for the node's own programs: it answers by the
// authority of the node, whatever credential a request has.
func (m *Mirror) Node() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.serve(w, r, true) //nolint:contextcheck // the context is that of the request
	})
}

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request, node bool) {
	rec := &recorder{ResponseWriter: w}
	kind := "other"
	defer func() { m.o.Served(kind, rec.status) }()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(rec, http.StatusMethodNotAllowed, "UNSUPPORTED", "this is a mirror for pulling: only GET and HEAD are answered")
		return
	}
	req, err := parse(r.URL)
	var bad *badName
	switch {
	case errors.As(err, &bad):
		refuse(rec, http.StatusBadRequest, "NAME_INVALID", err.Error())
		return
	case err != nil:
		refuse(rec, http.StatusNotFound, "UNSUPPORTED", err.Error())
		return
	}
	base, ok := m.o.Registries.Of(req.registry)
	if !ok && req.kind == "" && !r.URL.Query().Has("ns") {
		// Whether a registry is here at all: CRI-O, Podman and skopeo ask this
		// before they name one in the path, dfctl node status in passing.
		rec.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		rec.WriteHeader(http.StatusOK)
		return
	}
	if !ok {
		refuse(rec, http.StatusForbidden, "DENIED", fmt.Sprintf(
			"registry %q is not mirrored here: add it to dfdaemon's allow-registry (--allow-registry %s)", req.registry, req.registry))
		return
	}
	kind = req.kind
	c := &call{request: req, base: base, node: node, w: rec, r: r}
	if !node {
		c.cred.Authorization = r.Header.Get("Authorization")
	}
	switch isBlob := c.kind == "blobs" && r.Method == http.MethodGet; {
	case isBlob && node:
		m.nodeBlob(c)
	case isBlob:
		m.blob(c)
	case node:
		m.nodePass(c)
	default:
		m.pass(c)
	}
}

// recorder notes the status of an answer and keeps the way to sendfile open.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader notes the status.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// refuse answers with an error in the form of the distribution specification.
func refuse(w http.ResponseWriter, status int, code, message string) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(map[string][]item{"errors": {{code, message}}})
	if err != nil {
		body = []byte(`{"errors":[]}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// isAccepted reports whether the registry accepted the call's credential a
// short time ago.
func (m *Mirror) isAccepted(c *call) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.o.Now().Before(m.accepted[c.base+"\x00"+c.repo+"\x00"+c.credKey()])
}

// maxAccepted bounds the table of accepted credentials.
const maxAccepted = 10_000

// accept notes that the registry has accepted the call's credential.
func (m *Mirror) accept(c *call) {
	if m.o.Authority != nil {
		m.o.Authority.Accepted(c.repository(), c.cred)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.o.Now()
	if len(m.accepted) >= maxAccepted {
		for k, until := range m.accepted {
			if now.After(until) || len(m.accepted) > maxAccepted/2 {
				delete(m.accepted, k)
			}
		}
	}
	m.accepted[c.base+"\x00"+c.repo+"\x00"+c.credKey()] = now.Add(m.o.AuthTTL)
}

// refused notes an answer that may say that the call's credential counts no
// longer.
func (m *Mirror) refused(c *call, status int) {
	if m.o.Authority != nil && c.repo != "" && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
		m.o.Authority.Refused(c.repository(), c.cred)
	}
}
