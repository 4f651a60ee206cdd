package origin

import (
	"context"
	"net/http"
	"time"
)

// The budget of Do: somebody waits for its answer and can ask again.
const (
	doAttempts = 3
	doMaxWait  = 2 * time.Second
)

// Do makes one exchange of a small registry request (manifest, tags, referrers,
// HEAD) as it is: with the given header, Authorization included, less what
// belongs to the caller's own connection. It asks for no content coding and
// follows redirects under the rules of the package. It uses neither Credentials
// nor a Keychain, and fetches no tokens.
//
// Any status is an answer: a 401 comes back with its WWW-Authenticate. There is
// an error only if no answer came. GET and HEAD are repeated on network errors,
// 408, 429 and 5xx, at most twice and only if the wait is at most 2 seconds;
// then the last answer is returned. The caller closes the body.
func (c *Client) Do(ctx context.Context, method, url string, header http.Header) (*http.Response, error) {
	u, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	h := endToEnd(header)
	setDefaults(h, c.opts.UserAgent)
	kind := KindManifest
	if method == http.MethodHead {
		kind = KindHead
	}
	attempts := min(doAttempts, c.opts.MaxAttempts)
	if method != http.MethodGet && method != http.MethodHead {
		attempts = 1
	}
	for failed := 1; ; failed++ {
		resp, err := c.exchange(ctx, kind, method, u, h)
		wait, again := c.doAgain(ctx, failed, resp, err)
		if failed >= attempts || !again {
			return resp, err
		}
		if resp != nil {
			drain(resp.Body)
		}
		if werr := c.wait(ctx, wait); werr != nil {
			return nil, werr
		}
	}
}

// doAgain reports whether an answer, or its absence, is worth another attempt,
// and after which wait.
func (c *Client) doAgain(ctx context.Context, failed int, resp *http.Response, err error) (time.Duration, bool) {
	wait := c.opts.Backoff(failed)
	if err != nil {
		return wait, ctx.Err() == nil && !IsPermanent(err) && wait <= doMaxWait
	}
	temporary := (&StatusError{Status: resp.StatusCode}).Temporary()
	wait = max(wait, c.retryAfter(resp.Header))
	return wait, temporary && wait <= doMaxWait
}
