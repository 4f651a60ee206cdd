package backendtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// Node is what a backend works with on one machine.
type Node struct {
	// Dir names the node: what is opened with it again is the same node's.
	Dir string
	// Blobs is a directory with the blobs of images, by digest.
	Blobs  string
	Store  *device.Store
	Filler *Filler

	release []func()
}

// NewNode returns a node in a directory, which may be that of an earlier one
// that was Closed. The test's end closes it.
func NewNode(t testing.TB, dir string) *Node {
	t.Helper()
	n := &Node{Dir: dir, Blobs: filepath.Join(dir, "blobs")}
	n.Filler = &Filler{blobs: n.Blobs, flights: map[place]*flight{}, fetches: map[place]int{}}
	devices := filepath.Join(dir, "devices")
	for _, d := range []string{n.Blobs, devices} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	store, err := device.Open(device.Options{Dir: devices})
	if err != nil {
		t.Fatalf("open the devices: %v", err)
	}
	n.Store = store
	t.Cleanup(func() {
		for _, release := range n.release {
			release()
		}
		if err := store.Close(); err != nil {
			t.Errorf("close the devices: %v", err)
		}
	})
	return n
}

// Gate is asked before a group is fetched: it may wait, and its error is the
// fetch's.
type Gate func(ctx context.Context, d *device.Device, group int) error

// Filler is a backend.Filler that reads blobs from a directory.
type Filler struct {
	blobs string

	mu      sync.Mutex
	gate    Gate
	flights map[place]*flight
	fetches map[place]int
}

type place struct {
	key   device.Key
	group int
}

// flight is a fetch under way.
type flight struct {
	done chan struct{}
	err  error
}

// SetGate sets the gate; nil opens it.
func (f *Filler) SetGate(g Gate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = g
}

// Fetches returns how often groups were fetched: the sum, and the most of one
// group.
func (f *Filler) Fetches() (sum, most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.fetches {
		sum += n
		most = max(most, n)
	}
	return sum, most
}

// Fill implements backend.Filler.
func (f *Filler) Fill(ctx context.Context, d *device.Device, off, n int64) error {
	for _, g := range d.Missing(off, n) {
		if err := f.fill(ctx, d, g); err != nil {
			return fmt.Errorf("fill group %d: %w", g, err)
		}
	}
	return nil
}

func (f *Filler) fill(ctx context.Context, d *device.Device, group int) error {
	at := place{d.Key(), group}
	for !d.Has(group) {
		f.mu.Lock()
		running, gate := f.flights[at], f.gate
		mine := running == nil
		if mine {
			running = &flight{done: make(chan struct{})}
			f.flights[at] = running
		}
		f.mu.Unlock()
		if mine {
			running.err = f.fetch(ctx, d, group, gate)
			f.mu.Lock()
			delete(f.flights, at)
			f.mu.Unlock()
			close(running.done)
			return running.err
		}
		select {
		case <-running.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if running.err != nil && ctx.Err() == nil && !isContext(running.err) {
			return running.err
		}
	}
	return nil
}

func (f *Filler) fetch(ctx context.Context, d *device.Device, group int, gate Gate) error {
	if d.Has(group) {
		return nil
	}
	if gate != nil {
		if err := gate(ctx, d, group); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.fetches[place{d.Key(), group}]++
	f.mu.Unlock()
	plain, err := f.read(d.Table(), group)
	if err != nil {
		return err
	}
	return d.Write(group, plain)
}

// read returns the plain bytes of a group.
func (f *Filler) read(t *device.Table, group int) ([]byte, error) {
	g := &t.Blob.Groups[group]
	blob, err := os.Open(filepath.Join(f.blobs, blobName(t.Blob.Digest)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = blob.Close() }()
	stored := make([]byte, g.Stored)
	if _, err := blob.ReadAt(stored, g.Offset); err != nil {
		return nil, fmt.Errorf("read %s: %w", blob.Name(), err)
	}
	return t.Decode(group, stored, nil)
}

func blobName(d chunkfmt.Digest) string { return hex.EncodeToString(d[:]) }
