package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ballast is memory that was touched once, to be handed back while a round
// writes about as much into the page cache.
//
// A virtual machine may get its memory from the host page by page, at the first
// touch, and give free memory back; a page of a new file then costs ten times
// what it does on a machine that has its memory. The kernel prefers pages that
// were freed a moment ago, so with ballast the figures are those of a machine
// that has its memory.
type ballast struct {
	mem      []byte
	released int
}

// ballastLead is how much is handed back ahead of its use, in bytes.
const ballastLead = 256 << 20

// newBallast touches size bytes of memory.
func newBallast(size int64) (*ballast, error) {
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("ballast of %d bytes: %w", size, err)
	}
	page := unix.Getpagesize()
	for i := 0; i < len(mem); i += page {
		mem[i] = 1
	}
	return &ballast{mem: mem}, nil
}

// follow hands memory back as used, in bytes, grows, until ctx ends.
func (b *ballast) follow(ctx context.Context, used func() int64) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := b.release(int(min(used()+ballastLead, int64(len(b.mem))))); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// release hands back the first upTo bytes.
func (b *ballast) release(upTo int) error {
	upTo -= upTo % unix.Getpagesize()
	if upTo <= b.released {
		return nil
	}
	if err := unix.Madvise(b.mem[b.released:upTo], unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("handing back ballast: %w", err)
	}
	b.released = upTo
	return nil
}

func (b *ballast) close() error { return unix.Munmap(b.mem) }

// latencyBallast is more than the objects of one size take, in bytes.
const latencyBallast = 512 << 20

// touch touches size bytes of memory and hands them back.
func touch(size int64) error {
	b, err := newBallast(size)
	if err != nil {
		return err
	}
	return b.close()
}
