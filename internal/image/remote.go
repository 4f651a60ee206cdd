package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// dialAttempts is how often a registry is asked how to log in: a name that is
// wrong is found out soon.
const dialAttempts = 3

// remote is a repository of a registry, logged in to.
type remote struct {
	// Set once.
	opts   *Options
	repo   name.Repository
	base   string // URL of the registry, up to its host
	client *origin.Client
	rt     http.RoundTripper // authenticates
}

// dial logs in to a registry for a repository, with PullScope or PushScope.
func dial(ctx context.Context, ref Ref, o *Options, scope string) (*remote, error) {
	repo, err := o.repository(ref)
	if err != nil {
		return nil, err
	}
	scheme := "https"
	if o.PlainHTTP(ref.Registry) {
		scheme = "http"
	}
	auth, err := authn.Resolve(ctx, o.Keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("find credentials for %s: %w", ref.Registry, err)
	}
	scopes := []string{repo.Scope(scope)}
	for _, from := range o.MountFrom {
		scopes = append(scopes, repo.Registry.Repo(from).Scope(transport.PullScope))
	}
	r := &remote{opts: o, repo: repo, base: scheme + "://" + repo.RegistryStr()}
	base := transport.NewUserAgent(&oneScheme{inner: o.Transport, host: repo.RegistryStr(), scheme: scheme}, o.UserAgent)
	err = o.retry(ctx, min(dialAttempts, o.MaxAttempts), func() (bool, error) {
		// Nothing else watches for a registry that does not answer.
		ctx, cancel := context.WithTimeout(ctx, o.IdleTimeout)
		defer cancel()
		rt, err := transport.NewWithContext(ctx, repo.Registry, auth, base, scopes)
		if err != nil {
			return false, statusError(err)
		}
		r.rt = &answered{rt}
		return false, nil
	})
	if err != nil {
		verb, preposition := "pull", "from"
		if scope == transport.PushScope {
			verb, preposition = "push", "to"
		}
		return nil, fmt.Errorf("log in to registry %s: %w", ref.Registry, r.explain(verb, preposition, err))
	}
	r.client = origin.New(origin.Options{
		Transport: r.rt, UserAgent: o.UserAgent, MaxAttempts: o.MaxAttempts, Backoff: o.Backoff,
		IdleTimeout: o.IdleTimeout, MaxRetryAfter: o.MaxRetryAfter, After: o.After, Now: o.Now,
	})
	return r, nil
}

// oneScheme refuses requests to the registry by the other scheme. The library
// tries both for private addresses, and would send a password in the clear.
type oneScheme struct {
	inner        http.RoundTripper
	host, scheme string
}

// RoundTrip implements http.RoundTripper.
func (t *oneScheme) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == t.host && req.URL.Scheme != t.scheme {
		if req.Body != nil {
			_ = req.Body.Close() // as RoundTrip has to; nothing was read
		}
		return nil, fmt.Errorf("%s is asked by %s alone", t.host, t.scheme)
	}
	return t.inner.RoundTrip(req)
}

// answered makes what the library's transport says fit for origin.Client: the
// answer of a token server that refused is an error which that client knows to
// be permanent, and a challenge that this transport could not meet is no
// challenge to anybody else.
type answered struct{ inner http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t *answered) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.inner.RoundTrip(req)
	if err != nil {
		return nil, statusError(err)
	}
	resp.Header.Del("WWW-Authenticate")
	return resp, nil
}

// statusError turns the library's form of an answer into ours.
func statusError(err error) error {
	te := (*transport.Error)(nil)
	if !errors.As(err, &te) {
		return err
	}
	se := &origin.StatusError{Status: te.StatusCode, Header: http.Header{}, Message: diagnosis(te)}
	if te.Request != nil {
		se.Method, se.URL = te.Request.Method, origin.RedactURL(te.Request.URL.String())
	}
	return se
}

func (r *remote) url(kind, what string) string {
	return r.base + "/v2/" + r.repo.RepositoryStr() + "/" + kind + "/" + what
}

// get asks for a small document. Any status but 200 is an error; the content
// type is returned, and the header.
func (r *remote) get(ctx context.Context, url, accept string) (data []byte, h http.Header, err error) {
	err = r.opts.retry(ctx, r.opts.MaxAttempts, func() (bool, error) {
		resp, err := r.client.Do(ctx, http.MethodGet, url, http.Header{"Accept": {accept}})
		if err != nil {
			return false, err
		}
		if resp.StatusCode != http.StatusOK {
			return false, statusOf(resp)
		}
		defer resp.Body.Close()
		h = resp.Header
		if data, err = readLimited(resp.Body, maxManifest); err != nil {
			return false, fmt.Errorf("read %s: %w", origin.RedactURL(url), err)
		}
		return false, nil
	})
	return data, h, err
}

// manifest implements store.
func (r *remote) manifest(ctx context.Context, reference string) ([]byte, v1.Descriptor, error) {
	data, h, err := r.get(ctx, r.url("manifests", reference), acceptManifests)
	if err != nil {
		return nil, v1.Descriptor{}, r.explain("pull", "from", err)
	}
	return data, v1.Descriptor{MediaType: mediaType(h), Digest: digest.FromBytes(data), Size: int64(len(data))}, nil
}

// blob implements store.
func (r *remote) blob(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	if n == 0 {
		return http.NoBody, nil
	}
	obj := origin.Object{URL: origin.BlobURL(r.base, r.repo.RepositoryStr(), desc.Digest.String())}
	body, err := r.client.Open(ctx, obj, off, n)
	if err != nil {
		return nil, r.explain("pull", "from", err)
	}
	if body.Length >= 0 && body.Length != desc.Size {
		_ = body.Close() // always nil
		return nil, fmt.Errorf("%w: %s has %d bytes, its descriptor says %d", ErrCorrupt, obj.URL, body.Length, desc.Size)
	}
	// A registry that knows no ranges sends the whole.
	if skip := off - body.Offset; skip > 0 {
		if _, err := io.CopyN(io.Discard, body, skip); err != nil {
			_ = body.Close() // always nil
			return nil, err
		}
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(body, n), body}, nil
}

// close implements store.
func (r *remote) close() error {
	r.client.CloseIdleConnections()
	return nil
}
