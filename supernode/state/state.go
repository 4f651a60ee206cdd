package state

import (
	"errors"
	"fmt"
)

// Errors that implementations return, possibly wrapped.
var (
	// ErrNotFound is returned by Get for a key that has no value.
	ErrNotFound = errors.New("not found")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("state store is closed")
	// ErrInUse is returned by OpenBolt for a file that another process, or
	// another Store in this one, has open.
	ErrInUse = errors.New("in use by another process")
	// ErrInvalidKey is returned for an empty bucket, and for an empty key or
	// one of more than MaxKey bytes.
	ErrInvalidKey = errors.New("invalid key")
)

// MaxKey bounds a key and the name of a bucket, in bytes.
const MaxKey = 1024

// Store keeps values under a bucket and a key. The package's documentation
// states its contract.
type Store interface {
	// Get returns the value of key, or ErrNotFound.
	Get(bucket, key string) ([]byte, error)
	// Put sets the value of key. A nil value is stored as an empty one.
	Put(bucket, key string, value []byte) error
	// Delete removes key. A key that is not there is no error.
	Delete(bucket, key string) error
	// ForEach calls fn for every key of bucket in ascending order, on the
	// caller's goroutine. An error of fn ends it and is returned as it is.
	ForEach(bucket string, fn func(key string, value []byte) error) error
	// Close releases the store. Closing twice is no error.
	Close() error
}

// check refuses names that not every implementation can hold.
func check(names ...string) error {
	for _, name := range names {
		if name == "" || len(name) > MaxKey {
			return fmt.Errorf("%w: %d bytes, want 1 to %d", ErrInvalidKey, len(name), MaxKey)
		}
	}
	return nil
}

// pair is a visited key with its value.
type pair struct {
	key   string
	value []byte
}

func visit(pairs []pair, fn func(key string, value []byte) error) error {
	for _, p := range pairs {
		if err := fn(p.key, p.value); err != nil {
			return err
		}
	}
	return nil
}
