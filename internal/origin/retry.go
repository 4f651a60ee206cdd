package origin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// defaultBackoff doubles, and cuts a random half so that many nodes that failed
// together do not come back together.
func defaultBackoff(attempt int) time.Duration {
	d := maxBackoff
	if shift := max(attempt, 1) - 1; shift < 7 { // 100 ms << 7 is beyond maxBackoff
		d = firstBackoff << shift
	}
	return d - rand.N(d/2) //nolint:gosec // G404: spreading retries needs no secrecy
}

// retry calls attempt until it succeeds, fails for good, or *failed reaches
// MaxAttempts. A non-nil cause is a failure that has happened already: the call
// begins with the wait after it. *failed counts failures in a row.
func (c *Client) retry(ctx context.Context, failed *int, cause error, attempt func() error) error {
	for {
		if cause != nil {
			*failed++
			if err := c.pause(ctx, *failed, cause); err != nil {
				return err
			}
		}
		if cause = attempt(); cause == nil {
			return nil
		}
	}
}

// pause waits before the next attempt, or returns why there is to be none.
func (c *Client) pause(ctx context.Context, failed int, cause error) error {
	switch {
	case ctx.Err() != nil:
		return ended(ctx, cause)
	case IsPermanent(cause):
		return cause
	case failed >= c.opts.MaxAttempts:
		return fmt.Errorf("giving up after %d attempts: %w", failed, cause)
	}
	if c.wait(ctx, c.delay(failed, cause)) != nil {
		return ended(ctx, cause)
	}
	return nil
}

// ended joins the end of the context with what was being retried.
func ended(ctx context.Context, cause error) error {
	if errors.Is(cause, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w after %w", ctx.Err(), cause)
}

// delay is the backoff, or what the origin asked for if that is longer.
func (c *Client) delay(failed int, cause error) time.Duration {
	d := c.opts.Backoff(failed)
	if se := (*StatusError)(nil); errors.As(cause, &se) {
		d = max(d, c.retryAfter(se.Header))
	}
	return d
}

// retryAfter returns the wait that an answer asks for, at most MaxRetryAfter; 0
// if none.
func (c *Client) retryAfter(h http.Header) time.Duration {
	d, ok := parseRetryAfter(h.Get("Retry-After"), c.opts.Now())
	if !ok {
		return 0
	}
	return min(d, c.opts.MaxRetryAfter)
}

func (c *Client) wait(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.opts.After(d):
		return nil
	}
}

// parseRetryAfter reads a Retry-After value: seconds or an HTTP date. A date in
// the past is a wait of 0.
func parseRetryAfter(s string, now time.Time) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if n, ok := parseDigits(s); ok {
		return time.Duration(min(n, int64(24*time.Hour/time.Second))) * time.Second, true
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}

// parseDigits reads a non-negative decimal number without sign. strconv alone
// would take "+1".
func parseDigits(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
