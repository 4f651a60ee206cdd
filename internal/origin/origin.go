package origin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Object names what to read and with what right.
type Object struct {
	// URL is the absolute http or https URL of the blob or file, without
	// userinfo.
	URL string
	// Credentials are tried in order; the first that the origin accepts is used
	// from then on, until it is refused. Empty means anonymous, then the
	// client's Keychain. A non-empty list never falls back to the Keychain, so
	// a refusal is about these credentials.
	Credentials []Credential
	// Header holds extra request headers. Those the client sets itself
	// (Authorization, Host, Range, If-Range, Accept-Encoding) and hop-by-hop
	// headers are refused.
	Header http.Header
}

// Info describes an object as the origin does.
type Info struct {
	// Length of the whole object in bytes, -1 if the origin does not say.
	Length int64
	// ETag, LastModified and ContentType are the headers' values, "" if absent.
	ETag, LastModified, ContentType string
	// Ranges is set if the origin answered with a range or says that it can.
	Ranges bool
}

// Keychain finds credentials for a registry.
type Keychain interface {
	// Resolve returns the credential for a registry host ("ghcr.io",
	// "127.0.0.1:5000") and whether there is one. It is called from many
	// goroutines, for about every request that anonymous access does not
	// satisfy, and so should answer from memory.
	Resolve(ctx context.Context, registryHost string) (Credential, bool, error)
}

// The kinds of requests that Options.Observe is told about.
const (
	KindBlob     = "blob"     // Open, and each resumption
	KindHead     = "head"     // Head, and Do with HEAD
	KindManifest = "manifest" // Do with any other method
	KindToken    = "token"    // a token server
)

// Options configures a Client. The zero value works.
type Options struct {
	// Transport makes single HTTP exchanges. Default: NewTransport().
	Transport http.RoundTripper
	// Keychain is asked for a credential when an Object has none and anonymous
	// access is refused. Default: none.
	Keychain Keychain
	// UserAgent of requests that do not bring one. Default "damselfly".
	UserAgent string
	// MaxAttempts is how often something is tried without progress, counting
	// the first time; 1 means neither retries nor resumptions. Default 8, with
	// the default Backoff about 10 seconds.
	MaxAttempts int
	// Backoff returns how long to wait after the attempt-th failure in a row,
	// from 1. Default: 100 ms doubled up to 10 s, of which a random half is cut.
	Backoff func(attempt int) time.Duration
	// IdleTimeout is how long an origin may send nothing while an answer or the
	// next byte is waited for. Default 30 s.
	IdleTimeout time.Duration
	// MaxRetryAfter bounds the wait that an origin may ask for. Default 60 s.
	MaxRetryAfter time.Duration
	// After is the clock's timer for the waits between attempts. Default
	// time.After.
	After func(time.Duration) <-chan time.Time
	// Now is the clock for the life of tokens and HTTP dates. Default time.Now.
	Now func() time.Time
	// Observe is told of every exchange once its answer has been read: its kind,
	// the status (0 if there was no answer) and the bytes received. Redirects
	// count with the exchange they belong to. It is called on the goroutine that
	// reads and must not block. Default: none.
	Observe func(kind string, status int, bytes int64)
}

// Client reads from origins. It is safe for concurrent use.
type Client struct {
	// Set once.
	opts   Options
	memory *memory
	tokens *tokenStore
}

// New returns a client. Numbers in Options at or below zero, like nil, mean the default.
func New(opts Options) *Client {
	if opts.Transport == nil {
		opts.Transport = NewTransport()
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "damselfly"
	}
	if opts.MaxAttempts <= 0 {
		opts.MaxAttempts = 8
	}
	if opts.Backoff == nil {
		opts.Backoff = defaultBackoff
	}
	if opts.IdleTimeout <= 0 {
		opts.IdleTimeout = 30 * time.Second
	}
	if opts.MaxRetryAfter <= 0 {
		opts.MaxRetryAfter = time.Minute
	}
	if opts.After == nil {
		opts.After = time.After
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Observe == nil {
		opts.Observe = func(string, int, int64) {}
	}
	return &Client{opts: opts, memory: newMemory(), tokens: newTokenStore(opts.Now)}
}

// CloseIdleConnections closes the connections that are kept for reuse, if the
// transport can. The client stays usable.
func (c *Client) CloseIdleConnections() {
	if t, ok := c.opts.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// Head asks for an object's description without its content. An origin that
// does not know HEAD, or redirects to a URL signed for GET alone, is asked for
// the first byte instead. Errors are those of Open.
func (c *Client) Head(ctx context.Context, obj Object) (Info, error) {
	t, err := newTarget(obj, c.opts.UserAgent)
	if err != nil {
		return Info{}, err
	}
	var info Info
	noHead := false
	failed := 0
	err = c.retry(ctx, &failed, nil, func() error {
		resp, err := c.authorised(ctx, KindHead, http.MethodHead, t, t.header) //nolint:bodyclose // drain closes it
		if noHead = headUnknown(err); noHead {
			return nil
		}
		if err != nil {
			return err
		}
		defer drain(resp.Body)
		if err := checkCoding(resp); err != nil {
			return err
		}
		info = describe(resp, resp.ContentLength)
		return nil
	})
	if noHead {
		return c.headByGet(ctx, obj)
	}
	return info, err
}

func headUnknown(err error) bool {
	var se *StatusError
	if !errors.As(err, &se) {
		return false
	}
	switch se.Status {
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return se.Redirected
	}
	return false
}

func (c *Client) headByGet(ctx context.Context, obj Object) (Info, error) {
	b, err := c.Open(ctx, obj, 0, 1)
	if err != nil {
		return Info{}, err
	}
	return b.Info, b.Close()
}

// describe takes an object's description from an answer; length is that of the
// whole object.
func describe(resp *http.Response, length int64) Info {
	return Info{
		Length:       length,
		ETag:         resp.Header.Get("ETag"),
		LastModified: resp.Header.Get("Last-Modified"),
		ContentType:  resp.Header.Get("Content-Type"),
		Ranges:       resp.StatusCode == http.StatusPartialContent || strings.EqualFold(resp.Header.Get("Accept-Ranges"), "bytes"),
	}
}

// checkCoding refuses an encoded answer: its bytes are not the object's.
func checkCoding(resp *http.Response) error {
	coding := resp.Header.Get("Content-Encoding")
	if resp.Uncompressed || (coding != "" && !strings.EqualFold(coding, "identity")) {
		return fmt.Errorf("%w: Content-Encoding %q of %s, asked for identity", ErrBadAnswer, clip(coding), RedactURL(resp.Request.URL.String()))
	}
	return nil
}

// BlobURL returns the URL of a blob in a registry. Base is the registry's URL
// up to its host ("https://ghcr.io") or to the path it is served under.
func BlobURL(base, repo, digest string) string {
	return strings.TrimRight(base, "/") + "/v2/" + repo + "/blobs/" + digest
}

// target is an Object ready to be asked for.
type target struct {
	url    *url.URL
	origin string // scheme://host:port
	// scope is the part of the origin to which a credential's acceptance and
	// the way of logging in apply: a repository of a registry, or the host.
	scope  string
	repo   string // of a registry, or ""
	header http.Header
	creds  []Credential
}

func newTarget(obj Object, userAgent string) (*target, error) {
	u, err := parseURL(obj.URL)
	if err != nil {
		return nil, err
	}
	for _, cred := range obj.Credentials {
		if err := cred.validate(); err != nil {
			return nil, permanent(fmt.Errorf("object %s: %w", RedactURL(obj.URL), err))
		}
	}
	h := obj.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	for name := range h {
		if ownHeader(name) {
			return nil, permanent(fmt.Errorf("object %s: header %s is not the caller's to set", RedactURL(obj.URL), name))
		}
	}
	setDefaults(h, userAgent)
	t := &target{url: u, origin: originOf(u), header: h, creds: obj.Credentials, repo: repository(u.Path)}
	t.scope = t.origin + "/" + t.repo
	return t, nil
}

func setDefaults(h http.Header, userAgent string) {
	h.Set("Accept-Encoding", "identity")
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", userAgent)
	}
}

// repository returns the repository in the path of a registry request, or "".
func repository(path string) string {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return ""
	}
	for _, part := range []string{"/blobs/", "/manifests/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(rest, part); i > 0 {
			return rest[:i]
		}
	}
	return ""
}

// parseURL accepts an absolute http or https URL. Userinfo is refused rather
// than used: it would end up in places that know nothing of secrets.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		// url.Error repeats its input, which may hold a signature.
		return nil, permanent(errors.New("malformed URL"))
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, permanent(fmt.Errorf("URL %s: want scheme http or https", RedactURL(raw)))
	case u.Hostname() == "":
		return nil, permanent(fmt.Errorf("URL %s: no host", RedactURL(raw)))
	case u.User != nil:
		return nil, permanent(fmt.Errorf("URL %s: userinfo in the URL, want a Credential", RedactURL(raw)))
	}
	return u, nil
}
