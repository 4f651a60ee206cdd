package state

import (
	"maps"
	"slices"
	"sync"
)

// Memory is a Store that lives as long as the process: for tests, and for a
// supernode that is told to keep nothing.
type Memory struct {
	mu      sync.RWMutex
	buckets map[string]map[string][]byte // guarded by mu; nil once closed
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{buckets: map[string]map[string][]byte{}} }

// Get implements Store.
func (m *Memory) Get(bucket, key string) ([]byte, error) {
	if err := check(bucket, key); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.buckets == nil {
		return nil, ErrClosed
	}
	v, ok := m.buckets[bucket][key]
	if !ok {
		return nil, ErrNotFound
	}
	return slices.Clone(v), nil
}

// Put implements Store.
func (m *Memory) Put(bucket, key string, value []byte) error {
	if err := check(bucket, key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buckets == nil {
		return ErrClosed
	}
	if m.buckets[bucket] == nil {
		m.buckets[bucket] = map[string][]byte{}
	}
	m.buckets[bucket][key] = append([]byte{}, value...)
	return nil
}

// Delete implements Store.
func (m *Memory) Delete(bucket, key string) error {
	if err := check(bucket, key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.buckets == nil {
		return ErrClosed
	}
	delete(m.buckets[bucket], key)
	return nil
}

// ForEach implements Store.
func (m *Memory) ForEach(bucket string, fn func(key string, value []byte) error) error {
	if err := check(bucket); err != nil {
		return err
	}
	pairs, err := m.pairs(bucket)
	if err != nil {
		return err
	}
	return visit(pairs, fn)
}

func (m *Memory) pairs(bucket string) ([]pair, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.buckets == nil {
		return nil, ErrClosed
	}
	b := m.buckets[bucket]
	pairs := make([]pair, 0, len(b))
	for _, key := range slices.Sorted(maps.Keys(b)) {
		pairs = append(pairs, pair{key, slices.Clone(b[key])})
	}
	return pairs, nil
}

// Close implements Store; what was stored is gone.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buckets = nil
	return nil
}
