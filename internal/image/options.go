package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// Options configures Sources and Targets. The zero value works.
type Options struct {
	// Platforms are those that Images returns; an empty Variant or OSVersion
	// stands for any. Default: all.
	Platforms []v1.Platform
	// Keychain has the credentials. Default: docker's and podman's own
	// configuration, credential helpers included.
	Keychain authn.Keychain
	// Transport makes single HTTP exchanges. Default: origin.NewTransport().
	Transport http.RoundTripper
	// PlainHTTP says whether a registry ("10.0.0.1:5000") is spoken to without
	// TLS. Default: those on loopback addresses and localhost.
	PlainHTTP func(registry string) bool
	// UserAgent of requests. Default "damselfly".
	UserAgent string
	// MaxAttempts is how often something is tried without progress, counting
	// the first time. Default 6.
	MaxAttempts int
	// Backoff returns how long to wait after the attempt-th failure in a row,
	// from 1. Default: 200 ms doubled up to 10 s, of which a random half is cut.
	Backoff func(attempt int) time.Duration
	// MaxRetryAfter bounds the wait that a registry may ask for. Default 60 s.
	MaxRetryAfter time.Duration
	// IdleTimeout is how long a registry may send or take nothing. Default 60 s.
	IdleTimeout time.Duration
	// ChunkSize is the length of the pieces in which blobs are uploaded, in
	// bytes. Default 32 MiB.
	ChunkSize int64
	// MountFrom are repositories of the same registry ("library/debian") from
	// which blobs may be mounted into a Target, which asks for the right to read
	// them when it logs in. Default: none.
	MountFrom []string
	// After is the clock's timer for the waits between attempts. Default
	// time.After.
	After func(time.Duration) <-chan time.Time
	// Now is the clock for dates in answers. Default time.Now.
	Now func() time.Time
	// Log gets warnings about what a directory has and a layer cannot hold.
	// Default: none.
	Log *slog.Logger
}

const (
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// withDefaults returns a copy with every field set.
func (o Options) withDefaults() *Options {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Transport == nil {
		t := origin.NewTransport()
		t.ResponseHeaderTimeout = 0 // a registry may check a large blob before it answers; IdleTimeout watches
		o.Transport = t
	}
	if o.PlainHTTP == nil {
		o.PlainHTTP = loopback
	}
	if o.UserAgent == "" {
		o.UserAgent = "damselfly"
	}
	if o.MaxAttempts <= 0 {
		o.MaxAttempts = 6
	}
	if o.Backoff == nil {
		o.Backoff = defaultBackoff
	}
	if o.MaxRetryAfter <= 0 {
		o.MaxRetryAfter = time.Minute
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = time.Minute
	}
	if o.ChunkSize <= 0 {
		o.ChunkSize = 32 << 20
	}
	if o.After == nil {
		o.After = time.After
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &o
}

func defaultBackoff(attempt int) time.Duration {
	d := maxBackoff
	if shift := max(attempt, 1) - 1; shift < 6 { // 200 ms << 6 is beyond maxBackoff
		d = firstBackoff << shift
	}
	return d - rand.N(d/2) //nolint:gosec // G404: spreading retries needs no secrecy
}

// loopback reports registries on this machine: elsewhere a password could be
// read on the way.
func loopback(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// repository returns a repository with the right scheme.
func (o *Options) repository(ref Ref) (name.Repository, error) {
	var opts []name.Option
	if o.PlainHTTP(ref.Registry) {
		opts = append(opts, name.Insecure)
	}
	return name.NewRepository(ref.Registry+"/"+ref.Repository, opts...)
}

// errPermanent marks an error that trying again cannot help.
type errPermanent struct{ error }

func (e errPermanent) Unwrap() error { return e.error }

// retry calls attempt until it succeeds, fails for good or has failed so often
// in a row. attempt returns whether it came further than before.
func (o *Options) retry(ctx context.Context, attempts int, attempt func() (progress bool, err error)) error {
	for failed := 0; ; {
		progress, err := attempt()
		if err == nil {
			return nil
		}
		if progress {
			failed = 0
		}
		failed++
		var marked errPermanent
		var again errAgain
		switch {
		case ctx.Err() != nil:
			return ended(ctx, err)
		case errors.As(err, &marked):
			return marked.error
		case failed >= attempts, origin.IsPermanent(err) && !errors.As(err, &again):
			return err
		}
		select {
		case <-ctx.Done():
			return ended(ctx, err)
		case <-o.After(max(o.Backoff(failed), o.retryAfter(err))):
		}
	}
}

// ended joins the end of the context with what was being tried.
func ended(ctx context.Context, err error) error {
	if errors.Is(err, ctx.Err()) {
		return err
	}
	return fmt.Errorf("%w after %w", ctx.Err(), err)
}

// retryAfter returns the wait that an answer asks for, 0 if none.
func (o *Options) retryAfter(err error) time.Duration {
	se := (*origin.StatusError)(nil)
	if !errors.As(err, &se) {
		return 0
	}
	s := strings.TrimSpace(se.Header.Get("Retry-After"))
	d := time.Duration(0)
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = t.Sub(o.Now())
	}
	return min(max(d, 0), o.MaxRetryAfter)
}
