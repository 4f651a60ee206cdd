package pieces

import (
	"context"
	"sync"

	"golang.org/x/time/rate"
)

// limitedChunk is how much is sent at a time under a rate limit: small enough
// to interleave holders, large enough for sendfile to pay.
const limitedChunk = 128 << 10

// limits are token buckets of bytes: one for all, one for each holder.
type limits struct {
	all       *rate.Limiter // nil: no limit
	perHolder rate.Limit

	mu      sync.Mutex
	holders map[string]*rate.Limiter
}

// maxHolders bounds the table of buckets; it is emptied when full, which costs
// each holder at most one fresh burst.
const maxHolders = 4096

func newLimits(all, perHolder rate.Limit) *limits {
	l := &limits{perHolder: perHolder, holders: map[string]*rate.Limiter{}}
	if all > 0 {
		l.all = bucket(all)
	}
	return l
}

func bucket(r rate.Limit) *rate.Limiter { return rate.NewLimiter(r, 2*limitedChunk) }

func (l *limits) active() bool { return l.all != nil || l.perHolder > 0 }

// wait returns when n bytes, at most limitedChunk, may be sent to holder.
func (l *limits) wait(ctx context.Context, holder string, n int) error {
	if l.perHolder > 0 {
		if err := l.holder(holder).WaitN(ctx, n); err != nil {
			return err
		}
	}
	if l.all == nil {
		return nil
	}
	return l.all.WaitN(ctx, n)
}

func (l *limits) holder(name string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.holders[name]
	if !ok {
		if len(l.holders) >= maxHolders {
			clear(l.holders)
		}
		b = bucket(l.perHolder)
		l.holders[name] = b
	}
	return b
}
