package lazy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// keepUsable is how long an answer of Options.Usable counts.
const keepUsable = 5 * time.Second

// usable asks now and then whether mounts are of use.
type usable struct {
	check   func(ctx context.Context) error
	timeout time.Duration
	now     func() time.Time

	mu    sync.Mutex
	until time.Time
	err   error
}

// ask returns why mounts are of no use now. It takes at most about u.timeout.
func (u *usable) ask(ctx context.Context) error {
	if u.check == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now().Before(u.until) {
		return u.err
	}
	limited, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	err := u.check(limited)
	if ctx.Err() != nil {
		return ctx.Err() // says nothing
	}
	u.err, u.until = err, u.now().Add(keepUsable)
	return err
}

const (
	// keepTrouble is how long failures of mounts count: then one is tried again.
	keepTrouble = 30 * time.Second
	// manyChains have to fail in a row: one may be the image's fault.
	manyChains = 2
)

// trouble knows whether mounts fail on this node.
type trouble struct {
	now func() time.Time

	mu     sync.Mutex
	chains map[digest.Digest]bool // that failed since a mount succeeded
	last   time.Time
	err    error
}

// note takes note of how a mount went.
func (t *trouble) note(chain digest.Digest, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.chains, t.err = nil, nil
		return
	}
	if t.chains == nil {
		t.chains = map[digest.Digest]bool{}
	}
	if len(t.chains) < manyChains {
		t.chains[chain] = true
	}
	t.last, t.err = t.now(), err
}

// ask returns why mounts are expected to fail.
func (t *trouble) ask() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.chains) < manyChains || t.now().Sub(t.last) >= keepTrouble {
		return nil
	}
	return fmt.Errorf("the mounts of several images have failed in a row, the last one with: %w", t.err)
}
