package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

const (
	readers   = 4
	largeFile = 96 << 20
)

// demandOnly are flags of a snapshotter that brings nothing but what is read: all
// that a reader gets has come while it was measured.
var demandOnly = []string{"--background=false", "--prefetch=false"}

// large has an image in the registry whose files cannot be compressed, so that the
// bytes that are read are those that came.
func (l *lab) large(ctx context.Context) (*image, error) {
	return l.synthetic(ctx, "large", func() []file {
		var files []file
		for i := range readers {
			files = append(files, file{fmt.Sprintf("large%d", i), noise(uint64(i)+1, largeFile)}) // #nosec G115 -- small
		}
		return files
	})
}

// throughput measures parallel sequential readers of files that are not on the node.
func throughput(ctx context.Context, l *lab, r *result) error {
	large, err := l.large(ctx)
	if err != nil {
		return err
	}
	real, err := l.real(ctx)
	if err != nil {
		return err
	}
	link := float64(l.rate) / 8 / mb
	for _, backend := range l.o.backends {
		for _, img := range []*image{large, real} {
			f := map[string]*filling{}
			for i, host := range nodeHosts {
				name := fmt.Sprintf("%d sequential readers, %s, node %d", readers, img.name, i+1)
				f[host] = &filling{
					rate: figure{Mode: "throughput", With: backend, Unit: "MB/s", Against: "link rate", Goal: atLeast(0.8), Name: name},
					idle: figure{Mode: "throughput", With: backend, Unit: "% of the machine", Name: name + ": idle"},
					cpu:  figure{Mode: "throughput", With: backend, Unit: "CPU s per GiB", Name: name + ": the node's daemons"},
				}
			}
			for range l.o.repeat {
				err := l.trial(ctx, func(ctx context.Context, t *trial) error { return t.throughput(ctx, img, backend, link, f) })
				if err != nil {
					return fmt.Errorf("%s: %s: %w", backend, img.name, err)
				}
			}
			for _, host := range nodeHosts {
				r.add(f[host].rate)
				r.add(f[host].idle)
				r.add(f[host].cpu)
			}
		}
	}
	return l.downloads(ctx, large, link, r)
}

// filling is what is measured while an image is filled.
type filling struct{ rate, idle, cpu figure }

// throughput measures a first node and then a second one.
func (t *trial) throughput(ctx context.Context, img *image, backend string, link float64, f map[string]*filling) error {
	if err := t.startSupernode(ctx); err != nil {
		return err
	}
	for _, host := range nodeHosts {
		n, err := t.startNode(ctx, host, backend, demandOnly...)
		if err != nil {
			return err
		}
		root, err := n.mount(ctx, img)
		if err != nil {
			return err
		}
		tree, err := listTree(root)
		if err != nil {
			return err
		}
		at, err := n.readAtOnce(ctx, root, tree.files)
		if err != nil {
			return err
		}
		x := f[host]
		x.rate.Values, x.rate.References = append(x.rate.Values, at.rate/mb), append(x.rate.References, link)
		x.idle.Values, x.cpu.Values = append(x.idle.Values, at.idle), append(x.cpu.Values, at.cpu*(1<<30))
		t.o.log("%s %s %s: %.1f MB/s; %.0f %% idle, %.1f CPU s per GiB", backend, img.name, host, at.rate/mb, at.idle, at.cpu*(1<<30))
	}
	return nil
}

// pace is how fast something was read: bytes per second, percent of the machine's
// processors that were idle, the node's processor seconds per byte.
type pace struct{ rate, idle, cpu float64 }

// readAtOnce has the largest files read at once, each by one reader.
func (n *node) readAtOnce(ctx context.Context, root string, files []entry) (p pace, err error) {
	if len(files) < readers {
		return p, fmt.Errorf("the image has %d files, want %d", len(files), readers)
	}
	if err := n.cool(); err != nil {
		return p, err
	}
	end, err := n.profile(ctx)
	if err != nil {
		return p, err
	}
	defer end()
	machine, err := readCPUTimes()
	if err != nil {
		return p, err
	}
	before, err := n.cpu()
	if err != nil {
		return p, err
	}
	g, ctx := errgroup.WithContext(ctx)
	var total float64
	begin := time.Now()
	for _, e := range files[:readers] {
		total += float64(e.size)
		g.Go(func() error {
			_, err := readThrough([]entry{e}, 1<<20)(ctx, root)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return p, err
	}
	p.rate = total / time.Since(begin).Seconds()
	if p.idle, err = machine.idlePercent(); err != nil {
		return p, err
	}
	after, err := n.cpu()
	p.cpu = (after - before) / total
	return p, err
}

// downloads measures as many downloads from the registry, without Damselfly.
func (l *lab) downloads(ctx context.Context, img *image, link float64, r *result) error {
	f := figure{Mode: "throughput", Name: fmt.Sprintf("%d downloads from the registry", readers), Unit: "MB/s", Against: "link rate"}
	blob := img.layers[0]
	for range l.o.repeat {
		begin := time.Now()
		g, ctx := errgroup.WithContext(ctx)
		for i := range int64(readers) {
			part := blob.Size / readers
			g.Go(func() error { _, err := l.download(ctx, img, i*part, part); return err })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		f.Values, f.References = append(f.Values, float64(blob.Size)/mb/time.Since(begin).Seconds()), append(f.References, link)
	}
	r.add(f)
	return nil
}

// download reads n bytes of the image's first layer from the registry.
func (l *lab) download(ctx context.Context, img *image, off, n int64) (int64, error) {
	client := fleet.Client(l.net.Host(nodeHosts[1]))
	defer client.CloseIdleConnections()
	return rangeOf(ctx, client, "http://"+l.at(registryHost, registryPort)+"/v2/"+img.name+"/blobs/"+img.layers[0].Digest.String(), off, n)
}

func rangeOf(ctx context.Context, client *http.Client, url string, off, n int64) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("get %s: status %s", url, resp.Status)
	}
	return io.Copy(io.Discard, resp.Body)
}

// groupSize is the plain size up to which dfctl fills groups. Reads that are twice
// that apart, or more, are in groups of their own, wherever these begin.
const groupSize = 1 << 20

// latencies are those of a kind of reader, in milliseconds.
type latencies struct {
	name string
	all  []float64
}

// latency measures how long single reads wait for what is not on the node.
func latency(ctx context.Context, l *lab, r *result) error {
	img, err := l.large(ctx)
	if err != nil {
		return err
	}
	for _, backend := range l.o.backends {
		var kinds [2][2]latencies
		for i := range nodeHosts {
			for j, n := range []int{1, readers} {
				kinds[i][j].name = fmt.Sprintf("%d random readers, node %d", n, i+1)
			}
		}
		for range l.o.repeat {
			err := l.trial(ctx, func(ctx context.Context, t *trial) error { return t.latency(ctx, img, backend, &kinds) })
			if err != nil {
				return fmt.Errorf("%s: %w", backend, err)
			}
		}
		for _, ofNode := range kinds {
			for _, k := range ofNode {
				r.latency(backend, k, atMost(50))
			}
		}
	}
	plain, err := l.ranges(ctx, img)
	if err == nil {
		r.latency("", latencies{"range of a group from the registry", plain}, nil)
	}
	return err
}

func (r *result) latency(with string, k latencies, g *goal) {
	for _, q := range []struct {
		name string
		q    float64
		goal *goal
	}{{"p50", 0.5, nil}, {"p99", 0.99, g}, {"longest", 1, nil}} {
		r.add(figure{
			Mode: "latency", With: with, Unit: "ms", Goal: q.goal, Values: []float64{quantile(k.all, q.q)},
			Name: fmt.Sprintf("%s: %s of %d misses of 4 KiB", k.name, q.name, len(k.all)),
		})
	}
}

// latency measures a first node and then a second one, which do nothing else.
func (t *trial) latency(ctx context.Context, img *image, backend string, kinds *[2][2]latencies) error {
	if err := t.startSupernode(ctx); err != nil {
		return err
	}
	for i, host := range nodeHosts {
		n, err := t.startNode(ctx, host, backend, demandOnly...)
		if err != nil {
			return err
		}
		root, err := n.mount(ctx, img)
		if err != nil {
			return err
		}
		if err := n.cool(); err != nil {
			return err
		}
		// One reader has the first half of the files for itself.
		for j, files := range [][]int{{0, 1}, {2, 3}} {
			took, err := n.misses(ctx, root, files, []int{1, readers}[j])
			if err != nil {
				return err
			}
			t.o.log("%s %s %s: p50 %.2f ms, p99 %.2f ms", backend, host, kinds[i][j].name, quantile(took, 0.5), quantile(took, 0.99))
			kinds[i][j].all = append(kinds[i][j].all, took...)
		}
	}
	return nil
}

// misses has one block of each group of some files read in random order, and
// returns what each read took, in milliseconds.
func (n *node) misses(ctx context.Context, root string, files []int, readers int) ([]float64, error) {
	before, err := n.filled(ctx)
	if err != nil {
		return nil, err
	}
	var places []func([]byte) error
	for _, i := range files {
		f, err := os.Open(filepath.Join(root, fmt.Sprintf("large%d", i))) // #nosec G304 -- of the image
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // only read
		for off := int64(groupSize); off < largeFile; off += 5 * groupSize / 2 {
			at := off + rand.Int64N(groupSize/4)/4096*4096 // #nosec G404 -- any place
			places = append(places, func(p []byte) error { _, err := f.ReadAt(p, at); return err })
		}
	}
	// #nosec G404 -- any order
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	took, err := inParallel(ctx, places, readers)
	if err != nil {
		return nil, err
	}
	after, err := n.filled(ctx)
	if waits := after - before; err == nil && waits < int64(len(places))*95/100 {
		err = fmt.Errorf("only %d of %d reads have waited for content", waits, len(places))
	}
	return took, err
}

// filled returns how many reads have waited for content.
func (n *node) filled(ctx context.Context) (int64, error) {
	m, err := n.snapshotter.Metrics(ctx)
	return m.Sum("damselfly_mount_fill_seconds_count"), err
}

// inParallel makes reads, some at a time, and returns what each took, in
// milliseconds.
func inParallel(ctx context.Context, reads []func([]byte) error, readers int) ([]float64, error) {
	var mu sync.Mutex
	var took []float64
	next := make(chan func([]byte) error)
	g, ctx := errgroup.WithContext(ctx)
	for range readers {
		g.Go(func() error {
			buf := make([]byte, 4096)
			for read := range next {
				begin := time.Now()
				if err := read(buf); err != nil {
					return err
				}
				d := time.Since(begin)
				mu.Lock()
				took = append(took, float64(d)/float64(time.Millisecond))
				mu.Unlock()
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(next)
		for _, read := range reads {
			select {
			case next <- read:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	err := g.Wait()
	return took, err
}

// ranges measures requests to the registry for as much as a group has.
func (l *lab) ranges(ctx context.Context, img *image) ([]float64, error) {
	client := fleet.Client(l.net.Host(nodeHosts[1]))
	defer client.CloseIdleConnections()
	url := "http://" + l.at(registryHost, registryPort) + "/v2/" + img.name + "/blobs/" + img.layers[0].Digest.String()
	var took []float64
	for range 200 {
		begin := time.Now()
		off := rand.Int64N(img.layers[0].Size - groupSize) // #nosec G404 -- any place
		n, err := rangeOf(ctx, client, url, off, groupSize)
		if err == nil && n != groupSize {
			err = errors.New("the registry sent too little")
		}
		if err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(begin))/float64(time.Millisecond))
	}
	return took, nil
}
