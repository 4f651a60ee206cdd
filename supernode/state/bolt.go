package state

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long OpenBolt waits for somebody else to close the file:
// long enough for a predecessor that is just ending.
const lockTimeout = time.Second

// Bolt is a Store in one file. Every change is synced to disk before it
// returns.
type Bolt struct {
	path string
	db   *bbolt.DB
}

// OpenBolt opens the store in the file at path and creates it, readable by its
// owner alone, if it is missing; its directory must exist. ErrInUse is returned
// after a second if the file stays open elsewhere.
func OpenBolt(path string) (*Bolt, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("opening state file %s: %w; stop the other supernode, or give this one its own --data-dir", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("opening state file %s: %w", path, err)
	}
	return &Bolt{path: path, db: db}, nil
}

// Get implements Store.
func (b *Bolt) Get(bucket, key string) (value []byte, err error) {
	if err := check(bucket, key); err != nil {
		return nil, err
	}
	err = b.db.View(func(tx *bbolt.Tx) error {
		in := tx.Bucket([]byte(bucket))
		if in == nil {
			return ErrNotFound
		}
		v := in.Get([]byte(key))
		if v == nil {
			return ErrNotFound
		}
		value = slices.Clone(v) // v is gone with the transaction
		return nil
	})
	return value, b.wrap("reading", bucket, err)
}

// Put implements Store.
func (b *Bolt) Put(bucket, key string, value []byte) error {
	if err := check(bucket, key); err != nil {
		return err
	}
	return b.wrap("writing", bucket, b.db.Update(func(tx *bbolt.Tx) error {
		in, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		return in.Put([]byte(key), append([]byte{}, value...))
	}))
}

// Delete implements Store.
func (b *Bolt) Delete(bucket, key string) error {
	if err := check(bucket, key); err != nil {
		return err
	}
	return b.wrap("writing", bucket, b.db.Update(func(tx *bbolt.Tx) error {
		in := tx.Bucket([]byte(bucket))
		if in == nil {
			return nil
		}
		return in.Delete([]byte(key))
	}))
}

// ForEach implements Store.
func (b *Bolt) ForEach(bucket string, fn func(key string, value []byte) error) error {
	if err := check(bucket); err != nil {
		return err
	}
	// fn runs after the transaction: a change from inside one would wait for
	// it forever once the file has to be remapped.
	var pairs []pair
	err := b.db.View(func(tx *bbolt.Tx) error {
		in := tx.Bucket([]byte(bucket))
		if in == nil {
			return nil
		}
		return in.ForEach(func(k, v []byte) error {
			pairs = append(pairs, pair{string(k), slices.Clone(v)})
			return nil
		})
	})
	if err != nil {
		return b.wrap("reading", bucket, err)
	}
	return visit(pairs, fn)
}

// Close implements Store. It waits for calls that are under way.
func (b *Bolt) Close() error {
	if err := b.db.Close(); err != nil {
		return fmt.Errorf("closing state file %s: %w", b.path, err)
	}
	return nil
}

// wrap names the file and the bucket, and keeps bbolt's errors to this file.
func (b *Bolt) wrap(doing, bucket string, err error) error {
	switch {
	case err == nil, errors.Is(err, ErrNotFound):
		return err
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		err = ErrClosed
	}
	return fmt.Errorf("%s %q in state file %s: %w", doing, bucket, b.path, err)
}
