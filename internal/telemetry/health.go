package telemetry

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// checkTimeout bounds all readiness checks of one request together. It is
// below the timeout of common probes, so that the prober gets the reason
// instead of its own timeout.
const checkTimeout = 900 * time.Millisecond

// Check reports why a part of the daemon cannot do its work, or nil. It must
// return when ctx ends and is called from several goroutines at once.
type Check func(ctx context.Context) error

// Health answers whether the process lives and whether it is ready for work.
// The zero value is ready and has no checks. It is safe for concurrent use.
type Health struct {
	mu     sync.Mutex
	checks map[string]Check
}

// Register adds a readiness check under a name that appears in answers. A
// second check of the same name replaces the first.
func (h *Health) Register(name string, check Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checks == nil {
		h.checks = map[string]Check{}
	}
	h.checks[name] = check
}

// Failing runs all checks and returns the errors of those that failed, by
// name.
func (h *Health) Failing(ctx context.Context) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		failing = map[string]error{}
	)
	for name, check := range h.snapshot() {
		wg.Go(func() {
			if err := check(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failing[name] = err
			}
		})
	}
	wg.Wait()
	return failing
}

func (h *Health) snapshot() map[string]Check {
	h.mu.Lock()
	defer h.mu.Unlock()
	checks := make(map[string]Check, len(h.checks))
	for name, check := range h.checks {
		checks[name] = check
	}
	return checks
}

// healthAnswer is the body of /healthz and /readyz.
type healthAnswer struct {
	Status  string            `json:"status"` // "ok" or "unavailable"
	Failing map[string]string `json:"failing,omitempty"`
}

// ServeLive answers 200 for as long as the process can answer at all. It runs
// no checks: a daemon whose supernode is away must not be restarted for it.
func (h *Health) ServeLive(w http.ResponseWriter, _ *http.Request) {
	writeHealth(w, http.StatusOK, healthAnswer{Status: "ok"})
}

// ServeReady answers 200 when all checks pass, and 503 with the failing ones
// and their errors otherwise.
func (h *Health) ServeReady(w http.ResponseWriter, r *http.Request) {
	failing := h.Failing(r.Context())
	if len(failing) == 0 {
		writeHealth(w, http.StatusOK, healthAnswer{Status: "ok"})
		return
	}
	answer := healthAnswer{Status: "unavailable", Failing: make(map[string]string, len(failing))}
	for name, err := range failing {
		answer.Failing[name] = err.Error()
	}
	writeHealth(w, http.StatusServiceUnavailable, answer)
}

func writeHealth(w http.ResponseWriter, code int, answer healthAnswer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// The only possible error is that the client has gone.
	_ = json.NewEncoder(w).Encode(answer)
}
