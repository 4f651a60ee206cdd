package testenv

import (
	"testing"
	"time"
)

const (
	// patience is how long Eventually waits: far longer than anything it waits
	// for takes, so that a slow machine does not fail a test.
	patience = 30 * time.Second
	// pollEvery is how often it looks.
	pollEvery = 2 * time.Millisecond
)

// Eventually returns once cond holds, and fails the test if that takes longer
// than 30 seconds. what says what is waited for. cond is called on the caller's
// goroutine.
func Eventually(t testing.TB, cond func() bool, what string) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}
