package cdn

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Import stores content that was made here, under the digest that it has, and
// returns once it is complete. source is shown to people in place of a URL. What
// is in the cache already is kept as it was cut, and completed. No requester is
// let in by that: see Options.StandIn.
func (c *Cache) Import(ctx context.Context, id task.ID, table task.Table, source string, content io.ReaderAt) error {
	o, err := c.local(id, table, source)
	if err != nil {
		return err
	}
	defer o.Release()
	if err := o.fill(ctx, content); err != nil {
		return err
	}
	o.mu.Lock()
	o.whole = true // unless a fetch has failed meanwhile
	o.mu.Unlock()
	o.verify()
	return o.WaitComplete(ctx)
}

// local returns the object of id, made without asking anybody.
func (c *Cache) local(id task.ID, table task.Table, source string) (*Object, error) {
	o := c.lookup(id)
	if o == nil {
		var err error
		if o, err = c.createLocal(id, table, source); err != nil {
			return nil, err
		}
	}
	if o.table.Length != table.Length {
		o.Release()
		return nil, fmt.Errorf("storing %s: %w: %d bytes are known, %d given", id.Short(), errOtherLength, o.table.Length, table.Length)
	}
	return o, nil
}

func (c *Cache) createLocal(id task.ID, table task.Table, source string) (*Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.objects[id]; ok {
		o.refs++
		return o, nil
	}
	t, err := c.o.Store.Create(id, table, source)
	if err != nil {
		return nil, fmt.Errorf("storing %s: %w", id.Short(), err)
	}
	return c.insertLocked(id, t), nil
}

// fill writes the pieces that are missing. The last one is held back until the
// whole is checked.
func (o *Object) fill(ctx context.Context, content io.ReaderAt) (err error) {
	o.mu.Lock()
	o.whole = true
	o.mu.Unlock()
	defer func() {
		if err != nil {
			o.mu.Lock()
			o.giveUpLocked(err)
			o.mu.Unlock()
		}
	}()
	for i := range o.table.Count() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("storing %s: %w", o.id.Short(), err)
		}
		if o.t.Has(i) {
			continue
		}
		off, n := o.table.Piece(i)
		_, err := o.t.WritePiece(ctx, i, nil, io.NewSectionReader(content, off, n))
		if err != nil && !errors.Is(err, piecestore.ErrSuperseded) {
			return fmt.Errorf("storing piece %d of %s: %w", i, o.id.Short(), err)
		}
		o.publish()
	}
	return nil
}
