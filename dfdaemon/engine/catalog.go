package engine

import (
	"context"

	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Feed offers every proven piece of a task to whoever holds a ticket for it.
func (e *Engine) Feed(id task.ID, _ string) (pieces.Feed, error) {
	t, ok := e.o.Store.Get(id)
	if !ok {
		return nil, piecestore.ErrNotFound
	}
	changed, cancel := t.Subscribe()
	return &feed{t: t, changed: changed, cancel: cancel}, nil
}

// Ready answers for the pieces that are proven.
func (e *Engine) Ready(ctx context.Context, id task.ID, i int) error {
	t, ok := e.o.Store.Get(id)
	if !ok {
		return pieces.ErrNotHeld
	}
	defer t.Release()
	changed, cancel := t.Subscribe()
	defer cancel()
	for !t.Proven().Has(i) {
		if ctx.Err() != nil {
			return pieces.ErrNotHeld
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return pieces.ErrNotHeld
		}
	}
	return nil
}

// feed is the view of a task in the store.
type feed struct {
	t       *piecestore.Task
	changed <-chan struct{}
	cancel  func()
}

func (f *feed) Set() task.Set            { return f.t.Proven() }
func (f *feed) Changed() <-chan struct{} { return f.changed }

func (f *feed) Close() {
	f.cancel()
	f.t.Release()
}
