package fill

import (
	"context"
	"time"
)

// LimiterOptions configures a Limiter.
type LimiterOptions struct {
	// Share of the rate at which the swarm delivers that may be used, between 0
	// and 1. Default 0.5.
	Share float64
	// BytesPerSecond bounds the rate besides. Default: no bound.
	BytesPerSecond int64
}

// Limiter paces what is fetched in the background. One is shared by all that is
// to stay below its limits together: it lets one fetch at a time run, and then
// waits for as long as makes the limits true.
type Limiter struct {
	share float64
	rate  float64
	slot  chan struct{} // 1-buffered
}

// NewLimiter returns a Limiter.
func NewLimiter(o LimiterOptions) *Limiter {
	if o.Share <= 0 {
		o.Share = 0.5
	}
	return &Limiter{share: min(o.Share, 1), rate: float64(max(o.BytesPerSecond, 0)), slot: make(chan struct{}, 1)}
}

// do runs fetch, which returns how many bytes it has moved, and keeps others from
// it until its rate is within the limits.
func (l *Limiter) do(ctx context.Context, fetch func() (int64, error)) error {
	select {
	case l.slot <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.slot }()
	start := time.Now()
	n, err := fetch()
	took := time.Since(start)
	if rest := l.rest(n, took); err == nil && rest > 0 {
		return waitFor(ctx, nil, rest)
	}
	return err
}

// rest is how long to wait after n bytes have come within a time.
func (l *Limiter) rest(n int64, took time.Duration) time.Duration {
	rest := time.Duration(float64(took) * (1/l.share - 1))
	if l.rate > 0 {
		rest = max(rest, time.Duration(float64(n)/l.rate*float64(time.Second))-took)
	}
	return rest
}
