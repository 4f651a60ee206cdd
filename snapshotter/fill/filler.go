package fill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// ErrClosed is why Fill fails after Close.
var ErrClosed = errors.New("the filler is closed")

// Fetcher reads blobs; *node.Client is one.
type Fetcher interface {
	// Stream writes the n bytes of a blob at off to w, in order, as they arrive.
	// The bytes given to w are w's only until Write returns; an error of w is
	// returned. Errors are classified as package node does.
	Stream(ctx context.Context, b node.Blob, off, n int64, p node.Priority, w io.Writer) error
}

// Discarder is a Fetcher that can be made to forget its own copy of a blob.
type Discarder interface {
	Discard(ctx context.Context, b node.Blob) error
}

// Metrics is told what happens. Its methods may be called by several goroutines
// and must not block.
type Metrics interface {
	// Filled is told how long a reader has waited for what was missing, and with
	// what result.
	Filled(took time.Duration, err error)
	// Written is told of every group that was brought, with its bytes as stored
	// and decoded; ahead of any reader's wish for it, or not.
	Written(stored, plain int64, ahead bool)
	// Corrupt is told of every group that failed verification.
	Corrupt()
}

// Options configures a Filler. Fetch is required.
type Options struct {
	Fetch   Fetcher
	Metrics Metrics
	Log     *slog.Logger
	// OnAccess, if not nil, is called when a reader wants a group of a device
	// for the first time since the filler first saw the device, or since Forget;
	// present or not, unless the whole device is present. It must not block.
	OnAccess func(d *device.Device, group int)

	// Deadline is how long a reader waits in all while fetching fails. Default
	// 60 s.
	Deadline time.Duration
	// Stall is how long a read may bring nothing before it is tried anew.
	// Default 15 s.
	Stall time.Duration
	// Quiet is how long after the last wait of a reader Complete goes on.
	// Default 50 ms.
	Quiet time.Duration
	// MemoryBudget bounds the groups in flight, in bytes; a single group may
	// exceed it. Default 64 MiB.
	MemoryBudget int64
	// Readahead is how far ahead of a sequential reader groups are brought, in
	// decoded bytes. Default 8 MiB; negative: not at all.
	Readahead int64
	// ReadaheadTotal bounds what is on its way ahead of all readers, in decoded
	// bytes. Default 64 MiB.
	ReadaheadTotal int64
}

// defaults fills in what is not set.
func (o *Options) defaults() {
	set(&o.Deadline, 60*time.Second)
	set(&o.Stall, 15*time.Second)
	set(&o.Quiet, 50*time.Millisecond)
	set(&o.MemoryBudget, 64<<20)
	set(&o.Readahead, 8<<20)
	set(&o.ReadaheadTotal, 64<<20)
	o.Readahead = max(o.Readahead, 0)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = noMetrics{}
	}
}

func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

type noMetrics struct{}

func (noMetrics) Filled(time.Duration, error) {}
func (noMetrics) Written(_, _ int64, _ bool)  {}
func (noMetrics) Corrupt()                    {}

// target is what a Filler uses of a device.
type target interface {
	Table() *device.Table
	Has(group int) bool
	Complete() bool
	Origins() []string
	Write(group int, plain []byte) error
}

// Filler implements backend.Filler. Its methods may be called by several
// goroutines.
type Filler struct {
	o        Options
	onAccess func(d target, group int) // nil: none

	ctx    context.Context //nolint:containedctx // of the fetches, which outlive the calls that start them
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	memory     *semaphore.Weighted // of o.MemoryBudget bytes
	background *semaphore.Weighted // the part of it that background work may take
	cpu        *semaphore.Weighted
	demand     gate
	buffers    buffers

	mu     sync.Mutex
	closed bool
	states map[target]*state
	ahead  int64 // decoded bytes on their way that no reader has asked for

	complained time.Time
	silent     int // failures that were not logged since
}

const complainEvery = 10 * time.Second

// New returns a Filler. It starts nothing; the caller closes it.
func New(o Options) (*Filler, error) {
	if o.Fetch == nil {
		return nil, errors.New("fill: Options.Fetch is required")
	}
	o.defaults()
	f := &Filler{
		o:          o,
		memory:     semaphore.NewWeighted(o.MemoryBudget),
		background: semaphore.NewWeighted(max(o.MemoryBudget/2, 1)),
		cpu:        semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0))),
		states:     map[target]*state{},
	}
	if o.OnAccess != nil {
		f.onAccess = func(d target, group int) {
			if real, ok := d.(*device.Device); ok {
				o.OnAccess(real, group)
			}
		}
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f, nil
}

// Close ends all fetches and waits for them. Readers that wait fail with
// ErrClosed.
func (f *Filler) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel(ErrClosed)
	f.wg.Wait()
	return nil
}

// Fill returns when all groups that fill some of the n bytes of d at off are
// present.
func (f *Filler) Fill(ctx context.Context, d *device.Device, off, n int64) error {
	return f.fill(ctx, d, off, n)
}

// stride is how much of the device one step of Fill is for: a wide range must not
// take all memory from others.
const stride = 32 << 20

func (f *Filler) fill(ctx context.Context, d target, off, n int64) error {
	for ; n > 0 && !d.Complete(); off, n = off+stride, n-stride {
		if err := f.step(ctx, d, off, min(n, stride)); err != nil {
			return err
		}
	}
	return nil
}

func (f *Filler) step(ctx context.Context, d target, off, n int64) error {
	s, flights, err := f.want(d, off, n) //nolint:contextcheck // a fetch outlives the reader that starts it
	if err != nil || len(flights) == 0 {
		return err
	}
	f.demand.enter()
	start := time.Now()
	err = f.wait(ctx, s, flights)
	f.demand.leave()
	f.o.Metrics.Filled(time.Since(start), err)
	return err
}

// want returns the flights of what is missing.
func (f *Filler) want(d target, off, n int64) (*state, []*flight, error) {
	for {
		s, err := f.state(d)
		if err != nil {
			return nil, nil, err
		}
		if flights, ok := s.want(off, n); ok {
			return s, flights, nil
		}
	}
}

// wait returns when the flights have landed.
func (f *Filler) wait(ctx context.Context, s *state, flights []*flight) error {
	defer s.unwant(flights)
	deadline := time.NewTimer(f.o.Deadline)
	defer deadline.Stop()
	for _, fl := range flights {
		select {
		case <-fl.done:
			if fl.err != nil {
				return fl.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.ctx.Done():
			return ErrClosed
		case <-deadline.C:
			return s.tooLate(fl, f.o.Deadline)
		}
	}
	return nil
}

// state returns what is known of a device.
func (f *Filler) state(d target) (*state, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	s, ok := f.states[d]
	if !ok {
		s = newState(f, d)
		f.states[d] = s
	}
	return s, nil
}

// Forget ends what is fetched from d ahead of any reader, waits for it, and
// forgets what was accessed. It is to be called before d is released; while
// others still use the device, it does not disturb their readers.
func (f *Filler) Forget(d *device.Device) { f.forget(d) }

func (f *Filler) forget(d target) {
	f.mu.Lock()
	s, ok := f.states[d]
	f.mu.Unlock()
	if !ok {
		return
	}
	s.abandon()
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.accessed)
	if len(s.active) > 0 { // somebody else reads, and will forget it later
		return
	}
	s.forgotten = true
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.states, d)
}

// complain logs what is wrong, now and then: much fails at the same time when
// something does.
func (f *Filler) complain(level slog.Level, message string, args ...any) {
	f.mu.Lock()
	due := time.Since(f.complained) >= complainEvery
	if due {
		f.complained = time.Now()
		args = append(args, "more", f.silent)
		f.silent = 0
	} else {
		f.silent++
	}
	f.mu.Unlock()
	if due {
		f.o.Log.Log(f.ctx, level, message, args...)
	}
}

// spawn runs a goroutine that Close waits for; false after Close.
func (f *Filler) spawn(work func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.wg.Go(work)
	return true
}

// reserveAhead takes n bytes of the room for what no reader has asked for.
func (f *Filler) reserveAhead(n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ahead+n > f.o.ReadaheadTotal {
		return false
	}
	f.ahead += n
	return true
}

func (f *Filler) returnAhead(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead -= n
}

// describe names a group in errors and logs.
func describe(t *device.Table, group int) string {
	return fmt.Sprintf("group %d of blob %s", group, t.Blob.Digest)
}
