package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/perf/internal/coldcache"
)

const (
	// workingSet is how much of the image's largest files is read.
	workingSet = 256 << 20
	// trimmed is how long after a read the pages that are not needed have gone.
	trimmed = 5 * time.Second
)

// complete measures an image whose content is on the node, beside the same files on
// ext4.
func complete(ctx context.Context, l *lab, r *result) error {
	img, err := l.real(ctx)
	if err != nil {
		return err
	}
	for _, backend := range l.o.backends {
		err := l.trial(ctx, func(ctx context.Context, t *trial) error {
			return t.complete(ctx, r, img, backend)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", backend, err)
		}
	}
	return nil
}

func (t *trial) complete(ctx context.Context, r *result, img *image, backend string) error {
	if err := t.startSupernode(ctx); err != nil {
		return err
	}
	n, err := t.startNode(ctx, nodeHosts[0], backend)
	if err != nil {
		return err
	}
	lazy, err := n.mount(ctx, img)
	if err != nil {
		return err
	}
	t.o.log("completing %s", img.name)
	if err := n.awaitComplete(ctx, img); err != nil {
		return err
	}
	local := t.path("ext4")
	if err := quietly(exec.CommandContext(ctx, "cp", "-a", lazy, local)); err != nil {
		return err
	}
	p := &pair{t: t, r: r, backend: backend, lazy: lazy, local: local}
	if p.tree, err = listTree(local); err != nil {
		return err
	}
	t.o.log("%s: %d entries, %d files of %.0f MB", backend, len(p.tree.entries), len(p.tree.files), float64(p.tree.bytes)/mb)
	for _, m := range p.measures(img) {
		if err := p.measure(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return p.pageCache(ctx, n)
}

// pair is the same files twice.
type pair struct {
	t           *trial
	r           *result
	backend     string
	lazy, local string
	tree        *tree
}

// measured is a work with what is expected of it.
type measured struct {
	name, unit string
	scale      float64 // of the unit
	cold       bool
	work       work
	goal       float64
}

// Goals, by backend.
func warmGoal(backend string) float64 { return map[string]float64{erofs: 0.95, fuse: 0.85}[backend] }
func onlyEROFS(backend string, goal float64) float64 {
	if backend == erofs {
		return goal
	}
	return 0
}

func (p *pair) measures(img *image) []measured {
	files := p.tree.largest(workingSet)
	warm, other, cold := warmGoal(p.backend), onlyEROFS(p.backend, 0.95), onlyEROFS(p.backend, 0.8)
	const kib4, mib1 = 4 << 10, 1 << 20
	return []measured{
		{"warm sequential reads of 1 MiB", "MB/s", mb, false, readThrough(files, mib1), warm},
		{"warm sequential reads of 4 KiB", "MB/s", mb, false, readThrough(files, kib4), warm},
		{"warm random reads of 1 MiB", "MB/s", mb, false, readAnywhere(files, mib1, 1000), warm},
		{"warm random reads of 4 KiB", "MB/s", mb, false, readAnywhere(files, kib4, 100_000), warm},
		{"warm reads of all files", "MB/s", mb, false, readThrough(p.tree.files, 64<<10), warm},
		{"warm find", "entries/s", 1, false, find(p.tree), other},
		{"warm stat of all entries", "entries/s", 1, false, statAll(p.tree), other},
		{"warm exec of /bin/true", "runs/s", 1, false, execute(100, "/bin/true"), other},
		{"warm exec of " + img.command[0], "runs/s", 1, false, execute(20, lookUp(p.local, img.command[0]), img.command[1:]...), other},
		{"cold sequential reads of 1 MiB", "MB/s", mb, true, readThrough(files, mib1), cold},
		{"cold random reads of 4 KiB", "MB/s", mb, true, readAnywhere(files, kib4, 2000), cold},
		{"cold reads of all files", "MB/s", mb, true, readThrough(p.tree.files, 64<<10), cold},
		{"cold find", "entries/s", 1, true, find(p.tree), 0},
		{"cold stat of all entries", "entries/s", 1, true, statAll(p.tree), 0},
	}
}

// lookUp returns where a program is in an image.
func lookUp(root, program string) string {
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"} {
		if path := filepath.Join(dir, program); !filepath.IsAbs(program) {
			if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
				return path
			}
		}
	}
	return program
}

// measure does a work on both sides in turns.
func (p *pair) measure(ctx context.Context, m measured) error {
	f := figure{Mode: "complete", With: p.backend, Name: m.name, Unit: m.unit, Against: "ext4"}
	if m.goal > 0 {
		f.Goal = atLeast(m.goal)
	}
	for i := range p.t.o.repeat {
		sides := []struct {
			root   string
			values *[]float64
		}{{p.lazy, &f.Values}, {p.local, &f.References}}
		if i%2 == 1 { // neither is always the first
			sides[0], sides[1] = sides[1], sides[0]
		}
		for _, side := range sides {
			rate, err := m.rate(ctx, side.root)
			if err != nil {
				return err
			}
			*side.values = append(*side.values, rate/m.scale)
		}
	}
	p.r.add(f)
	return nil
}

// rate does the work once for nothing, if that is to be warm, and once for time.
func (m *measured) rate(ctx context.Context, root string) (float64, error) {
	if m.cold {
		if err := coldcache.Drop(); err != nil {
			return 0, err
		}
	} else if _, err := m.work(ctx, root); err != nil {
		return 0, err
	}
	begin := time.Now()
	amount, err := m.work(ctx, root)
	return amount / time.Since(begin).Seconds(), err
}

// pageCache measures what stays in memory of an image that was read once.
func (p *pair) pageCache(ctx context.Context, n *node) error {
	f := figure{Mode: "complete", With: p.backend, Name: "page cache after reading all once", Unit: "of the bytes read", Goal: atMost(1.1)}
	const most = 3 // nothing here varies much
	for tries := 0; len(f.Values) < min(p.t.o.repeat, most); tries++ {
		share, err := p.cachedShare(ctx, n)
		if err != nil {
			return err
		}
		if share >= 0.9 {
			f.Values = append(f.Values, share)
		} else if tries > 2*most {
			return fmt.Errorf("only %.2f of what was read stays in the page cache: does something else drop it?", share)
		}
	}
	p.r.add(f)
	return nil
}

// cachedShare reads all files and returns how much of the page cache their content
// then takes, by the bytes read.
func (p *pair) cachedShare(ctx context.Context, n *node) (float64, error) {
	if err := coldcache.Drop(); err != nil {
		return 0, err
	}
	amount, err := readThrough(p.tree.files, 128<<10)(ctx, p.lazy)
	if err != nil {
		return 0, err
	}
	timer := time.NewTimer(trimmed)
	select {
	case <-timer.C:
	case <-ctx.Done():
		timer.Stop()
		return 0, context.Cause(ctx)
	}
	var files float64
	for _, e := range p.tree.files {
		c, err := cached(filepath.Join(p.lazy, e.path))
		if err != nil {
			return 0, err
		}
		files += c
	}
	behind, err := cachedBelow(n.path(n.host, "s", "data"))
	p.t.o.log("%s: %.1f MB cached as the mount's files, %.1f MB as the snapshotter's, of %.1f MB read", p.backend, files/mb, behind/mb, amount/mb)
	return (files + behind) / amount, err
}

// cached returns how many bytes of a file are in the page cache.
func cached(path string) (float64, error) {
	f, err := os.Open(path) // #nosec G304 -- of the image
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	var c unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0); err != nil {
		return 0, fmt.Errorf("cachestat %s: %w", path, err)
	}
	return float64(c.Cache) * float64(os.Getpagesize()), nil
}

// cachedBelow returns how many bytes of all files below a directory are in the page
// cache, without those of what is mounted there.
func cachedBelow(dir string) (total float64, err error) {
	var top unix.Stat_t
	if err := unix.Lstat(dir, &top); err != nil {
		return 0, fmt.Errorf("lstat %s: %w", dir, err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		switch {
		case d.IsDir() && st.Dev != top.Dev:
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		c, err := cached(path)
		total += c
		return err
	})
	return total, err
}
