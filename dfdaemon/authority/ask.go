package authority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// Exchanger performs small registry requests through the supernode.
type Exchanger interface {
	Exchange(ctx context.Context, r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error)
}

// Answer is a registry's answer to a small request.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // of a GET that succeeded
	// Message is what the registry says about a failure.
	Message string
	// Credential is what the registry has accepted.
	Credential origin.Credential
}

// MaxBody is the largest body of an Answer, in bytes.
const MaxBody = 8 << 20

// askAttempts is how often one server is asked: whoever waits for the answer to
// a small request has a way without it.
const askAttempts = 2

// maxRetryAfter bounds the wait that a server may ask for, likewise.
const maxRetryAfter = 2 * time.Second

func newClient(o Options) *origin.Client {
	c := o.Origin
	if c.Transport == nil {
		c.Transport = origin.NewTransport()
	}
	c.Transport = &transport{exchange: o.Exchange, direct: c.Transport}
	c.Keychain = nil
	c.MaxAttempts, c.MaxRetryAfter = askAttempts, maxRetryAfter
	return origin.New(c)
}

// Ask makes a small request (GET or HEAD of a manifest, tags, referrers, or HEAD
// of a blob) for path, which begins with /v2/ and is of r. Accept is all that
// header may hold. A status of 4xx is an answer; there is an error if none came,
// or only one that says that the registry has trouble.
func (a *Authority) Ask(ctx context.Context, r Repository, method, path string, header http.Header) (Answer, error) {
	var answer Answer
	err := a.Try(ctx, r, "", func(at Attempt) (err error) {
		obj := origin.Object{URL: r.Base + path, Header: http.Header{"Accept": header.Values("Accept")}, Credentials: []origin.Credential{at.Credential}}
		if answer, err = a.ask(ctx, method, obj); err == nil {
			answer.Credential = at.Credential
			a.Accepted(r, at.Credential)
		}
		return err
	})
	var status *origin.StatusError
	if errors.As(err, &status) && status.Status >= 400 && status.Status < 500 && status.Status != http.StatusTooManyRequests {
		return Answer{Status: status.Status, Header: status.Header, Message: status.Message}, nil
	}
	return answer, err
}

// ask makes the request with one credential.
func (a *Authority) ask(ctx context.Context, method string, obj origin.Object) (Answer, error) {
	header := http.Header{}
	ctx = context.WithValue(ctx, headerKey{}, &header)
	if method == http.MethodHead {
		_, err := a.client.Head(ctx, obj)
		return Answer{Status: http.StatusOK, Header: header}, err
	}
	body, err := a.client.Open(ctx, obj, 0, -1)
	if err != nil {
		return Answer{}, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, MaxBody+1))
	if err == nil && len(b) > MaxBody {
		err = fmt.Errorf("%s: the answer is larger than %d bytes", origin.RedactURL(obj.URL), MaxBody)
	}
	return Answer{Status: http.StatusOK, Header: header, Body: b}, err
}

// headerKey is the context's key of a *http.Header that gets the header of the
// last answer: package origin returns only what bodies need.
type headerKey struct{}

// transport sends small registry requests through the supernode, which asks the
// registry once for all nodes with the same credential, and others directly.
type transport struct {
	exchange Exchanger
	direct   http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if whole := r.Header.Get("Range") == "bytes=0-"; whole && isSmall(r) {
		r = r.Clone(r.Context())
		r.Header.Del("Range") // not every registry knows ranges of these
	}
	resp, err := t.roundTrip(r)
	if err == nil {
		if h, ok := r.Context().Value(headerKey{}).(*http.Header); ok {
			*h = resp.Header
		}
	}
	return resp, err
}

func (t *transport) roundTrip(r *http.Request) (*http.Response, error) {
	if !isSmall(r) || r.Header.Get("Range") != "" {
		return t.direct.RoundTrip(r)
	}
	a, err := t.exchange.Exchange(r.Context(), &apiv1.ExchangeRequest{
		Method: r.Method, Url: r.URL.String(), Headers: wire.FromHeader(r.Header),
	})
	switch {
	case errors.Is(err, swarm.ErrUnreachable), swarm.IsTooLarge(err):
		return t.direct.RoundTrip(r)
	case err != nil:
		return nil, err
	}
	resp := &http.Response{
		StatusCode: int(a.Status), Status: http.StatusText(int(a.Status)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: wire.Header(a.Headers), ContentLength: -1, Body: http.NoBody, Request: r,
	}
	if r.Method != http.MethodHead {
		resp.ContentLength = int64(len(a.Body))
		resp.Body = io.NopCloser(bytes.NewReader(a.Body))
	}
	return resp, nil
}

// isSmall reports whether r is a registry request other than for a blob's bytes.
func isSmall(r *http.Request) bool {
	path := r.URL.Path
	if !strings.Contains(path, "/v2/") {
		return false
	}
	for _, kind := range []string{"/manifests/", "/referrers/", "/tags/"} {
		if strings.Contains(path, kind) {
			return r.Method == http.MethodGet || r.Method == http.MethodHead
		}
	}
	return r.Method == http.MethodHead && strings.Contains(path, "/blobs/")
}
