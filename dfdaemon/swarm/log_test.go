package swarm_test

import (
	"io"
	"log/slog"
	"sync"
)

// guarded is a writer for several goroutines.
type guarded struct {
	mu *sync.Mutex
	w  io.Writer
}

func (g guarded) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.w.Write(b)
}

func logger(mu *sync.Mutex, w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(guarded{mu, w}, nil))
}
