package lazy

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// layers are the lazy layers that there are. For each it holds the index, and
// says that the tables of its devices are needed.
type layers struct {
	indexes *indexes

	mu sync.Mutex // taken before that of indexes
	// all has the devices of each layer by chain ID and index: a chain may have
	// been found twice, with different indexes of the same content.
	all  map[digest.Digest]map[digest.Digest][]device.Key
	keys map[device.Key]int
}

func newLayers(x *indexes) *layers {
	return &layers{indexes: x, all: map[digest.Digest]map[digest.Digest][]device.Key{}, keys: map[device.Key]int{}}
}

// add takes note of a lazy layer. The caller sees to it that its index is held
// until it returns.
func (l *layers) add(chain, index digest.Digest, devices []device.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[chain] == nil {
		l.all[chain] = map[digest.Digest][]device.Key{}
	}
	if _, ok := l.all[chain][index]; ok {
		return
	}
	l.all[chain][index] = devices
	l.indexes.hold(index)
	for _, k := range devices {
		l.keys[k]++
	}
}

// remove forgets the layers of a chain ID.
func (l *layers) remove(chain digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for index, devices := range l.all[chain] {
		l.indexes.release(index)
		for _, k := range devices {
			if l.keys[k]--; l.keys[k] <= 0 {
				delete(l.keys, k)
			}
		}
	}
	delete(l.all, chain)
}

// need reports whether a layer has the device.
func (l *layers) need(key device.Key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keys[key] > 0
}
