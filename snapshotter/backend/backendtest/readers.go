package backendtest

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// Readers are goroutines that read a file at random and compare what they get.
type Readers struct {
	wg    sync.WaitGroup
	done  chan struct{}
	reads atomic.Int64
}

// StartReaders starts n readers of a file. The caller Stops them. A read that
// fails, or returns anything else than the content, fails the test.
func StartReaders(t testing.TB, n int, name string, content []byte) *Readers {
	t.Helper()
	r := &Readers{done: make(chan struct{})}
	for i := range n {
		f := openRandom(t, name)
		r.wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1)) // #nosec G115,G404 -- test data
			for !r.stopped() {
				off := random.IntN(len(content))
				expect(t, f, content, off, min(random.IntN(200_000)+1, len(content)-off))
				r.reads.Add(1)
			}
		})
	}
	return r
}

// Reads returns how many reads have ended.
func (r *Readers) Reads() int64 { return r.reads.Load() }

func (r *Readers) stopped() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// Stop ends the readers and waits for them.
func (r *Readers) Stop() {
	close(r.done)
	r.wg.Wait()
}
