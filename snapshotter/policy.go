package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

const (
	// keysCount is how long the supernode's keys count before the daemon is asked
	// again, keysRetry the same after it did not answer.
	keysCount = 30 * time.Second
	keysRetry = time.Second
	// keysTimeout bounds the question: pulls wait for it.
	keysTimeout = 500 * time.Millisecond
)

// policy is the trust policy of the node: that of its file, and the keys of the
// supernode that the node has joined.
type policy struct {
	file string
	info func(context.Context) (node.Info, error)
	log  *slog.Logger

	mu      sync.Mutex
	keys    []trust.PublicKey
	refresh time.Time
}

// get returns the policy as it is now: the file is read again each time, so that
// a key that was taken out of it is not used any more.
func (p *policy) get(ctx context.Context) (*trust.Policy, error) {
	base := &trust.Policy{}
	if p.file != "" {
		var err error
		if base, err = trust.LoadPolicy(p.file); err != nil {
			return nil, fmt.Errorf("trust-policy: %w", err)
		}
	}
	return base.With(p.supernodeKeys(ctx)...)
}

// supernodeKeys asks the daemon for the keys; those it last told count while it
// cannot be asked.
func (p *policy) supernodeKeys(ctx context.Context) []trust.PublicKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.refresh) {
		return p.keys
	}
	asking, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	info, err := p.info(asking)
	if err != nil {
		p.log.Debug("the supernode's keys are not known anew", "error", err)
		if ctx.Err() == nil {
			p.refresh = time.Now().Add(keysRetry)
		}
		return p.keys
	}
	var keys []trust.PublicKey
	for _, pem := range info.TrustKeys {
		some, err := trust.ParsePublicKeys(pem)
		if err != nil {
			p.log.Warn("the supernode has a key that cannot be used", "error", err)
			continue
		}
		keys = append(keys, some...)
	}
	p.keys, p.refresh = keys, time.Now().Add(keysCount)
	return keys
}
