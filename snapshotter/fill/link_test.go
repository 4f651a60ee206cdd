package fill

import (
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// link is a daemon that gets a fixture's blob over a link of some bandwidth.
type link struct {
	apiv1.UnimplementedNodeServer
	x    *fixture
	rate *rate.Limiter
}

func (l *link) Read(r *apiv1.ReadRequest, s grpc.ServerStreamingServer[apiv1.ReadChunk]) error {
	for p := l.x.stored[r.Offset : r.Offset+r.Length]; len(p) > 0; {
		n := min(len(p), 64<<10)
		if err := l.rate.WaitN(s.Context(), n); err != nil {
			return err
		}
		if err := s.Send(&apiv1.ReadChunk{Data: p[:n]}); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

const gigabit = 125_000_000 // bytes per second

// over returns a Filler that fetches over a link.
func (x *fixture) over(b *testing.B, bandwidth rate.Limit) *Filler {
	b.Helper()
	dir, err := os.MkdirTemp("", "fill")
	if err != nil {
		b.Fatal(err)
	}
	socket := filepath.Join(dir, "dfdaemon.sock")
	lis, err := (&net.ListenConfig{}).Listen(b.Context(), "unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer()
	apiv1.RegisterNodeServer(srv, &link{x: x, rate: rate.NewLimiter(bandwidth, 256<<10)})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	c, err := node.New(node.Options{Socket: socket})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = c.Close()
		srv.Stop()
		if err := <-served; err != nil {
			b.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return newFiller(b, Options{Fetch: c})
}

// BenchmarkLink reads a device that is being filled over 1 Gbit/s: four readers in
// sequence, in units of the kernel's readahead, and one at random.
func BenchmarkLink(b *testing.B) {
	const groups = 256
	x := newZstdFixture(b, groups, 1<<20)
	sequential := func(bandwidth rate.Limit) func(*testing.B) {
		return func(b *testing.B) {
			f := x.over(b, bandwidth)
			b.SetBytes(groups << 20)
			var cpu time.Duration
			for b.Loop() {
				b.StopTimer()
				d := x.open(b)
				before := used(b)
				b.StartTimer()
				var wg sync.WaitGroup
				for i := range int64(4) {
					wg.Go(func() {
						for off := i * groups / 4 << 20; off < (i+1)*groups/4<<20; off += 128 << 10 {
							if err := f.Fill(b.Context(), d, off, 128<<10); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				cpu += used(b) - before
				f.Forget(d)
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/groups/float64(b.N), "cpu-ms/MiB")
		}
	}
	b.Run("Sequential", sequential(gigabit))
	b.Run("SequentialUnlimited", sequential(rate.Inf))
	b.Run("Random", func(b *testing.B) {
		f := x.over(b, gigabit)
		var waits []time.Duration
		for b.Loop() {
			d := x.open(b)
			for _, g := range rand.Perm(groups) {
				start := time.Now()
				if err := f.Fill(b.Context(), d, int64(g)<<20+4096, 4096); err != nil {
					b.Fatal(err)
				}
				waits = append(waits, time.Since(start))
			}
			f.Forget(d)
		}
		slices.Sort(waits)
		b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds())/1000, "p99-ms")
	})
}

// used is the processor time of the test.
func used(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var _ Fetcher = (*node.Client)(nil)
var _ Discarder = (*node.Client)(nil)
