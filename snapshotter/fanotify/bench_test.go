package fanotify

import (
	"context"
	"os"
	"testing"
)

// BenchmarkPresent is what an event costs a reader when nothing is missing.
func BenchmarkPresent(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	f, err := os.CreateTemp(b.TempDir(), "device")
	if err != nil {
		b.Fatal(err)
	}
	defer closing(b, f)
	if err := fill(f, 0, 128<<10); err != nil {
		b.Fatal(err)
	}
	w, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closing(b, w)
	if err := w.Mark(f); err != nil {
		b.Fatal(err)
	}
	r, err := os.Open(f.Name())
	if err != nil {
		b.Fatal(err)
	}
	defer closing(b, r)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- w.Serve(ctx, func(context.Context, int64, int64) error { return nil }) }()
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := r.ReadAt(buf, 0); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
