package fuse_test

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
)

const benchSize = 128 << 20

// places returns directories with equal content: one of ext4, or what else the
// tests' directory is on, and mounts of a complete image.
func places(b *testing.B, l backendtest.Layer) map[string]string {
	b.Helper()
	testenv.Integration(b)
	testenv.Root(b)
	n := backendtest.NewNode(b, b.TempDir())
	im := n.Image(b, l)
	for _, d := range im.Devices {
		if err := n.Filler.Fill(b.Context(), d, 0, d.Size()); err != nil {
			b.Fatal(err)
		}
		if err := d.Writer().Sync(); err != nil {
			b.Fatal(err)
		}
	}
	local := b.TempDir()
	for name, f := range im.Want {
		name = filepath.Join(local, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, f.Content, 0o600); err != nil && f.Content != nil {
			b.Fatal(err)
		}
	}
	unix.Sync()
	return map[string]string{
		"local":           local,
		"fuse":            mount(b, n, im, fuse.Options{}),
		"fuse-readahead1": mount(b, n, im, fuse.Options{ReadAhead: 1 << 20}),
	}
}

func eachPlace(b *testing.B, l backendtest.Layer, run func(b *testing.B, dir string)) {
	at := places(b, l)
	for _, name := range []string{"local", "fuse", "fuse-readahead1"} {
		b.Run(name, func(b *testing.B) { run(b, at[name]) })
	}
}

func bigFile() backendtest.Layer {
	return backendtest.Layer{backendtest.Regular("file", backendtest.Noise(1, benchSize))}
}

func readAll(b *testing.B, name string, cold bool) {
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if cold {
		b.StopTimer()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	buf := make([]byte, 256<<10)
	for {
		if _, err := f.Read(buf); err == io.EOF {
			return
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadWarm reads a file that is in the page cache.
func BenchmarkReadWarm(b *testing.B) {
	eachPlace(b, bigFile(), func(b *testing.B, dir string) {
		name := filepath.Join(dir, "file")
		readAll(b, name, false)
		b.SetBytes(benchSize)
		for b.Loop() {
			readAll(b, name, false)
		}
	})
}

// BenchmarkReadCold reads a file of which nothing is in the page cache.
func BenchmarkReadCold(b *testing.B) {
	eachPlace(b, bigFile(), func(b *testing.B, dir string) {
		b.SetBytes(benchSize)
		for b.Loop() {
			readAll(b, filepath.Join(dir, "file"), true)
		}
	})
}

// BenchmarkRandomWarm reads 4 KiB at a time of what is in the page cache.
func BenchmarkRandomWarm(b *testing.B) {
	eachPlace(b, bigFile(), func(b *testing.B, dir string) {
		name := filepath.Join(dir, "file")
		readAll(b, name, false)
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		buf := make([]byte, 4096)
		b.SetBytes(4096)
		for b.Loop() {
			if _, err := f.ReadAt(buf, rand.Int64N(benchSize/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWalk looks at all of a tree of 10,000 small files, at first cold.
func BenchmarkWalk(b *testing.B) {
	var l backendtest.Layer
	for d := range 100 {
		l = append(l, backendtest.Directory(fmt.Sprintf("d%d", d)))
		for f := range 100 {
			l = append(l, backendtest.Regular(fmt.Sprintf("d%d/file-%d", d, f), backendtest.Noise(uint64(d*100+f), 200)))
		}
	}
	eachPlace(b, l, func(b *testing.B, dir string) {
		for b.Loop() {
			err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
				if err == nil {
					_, err = d.Info()
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkOpenRead opens and reads small files that are in the page cache.
func BenchmarkOpenRead(b *testing.B) {
	eachPlace(b, backendtest.Layer{backendtest.Regular("file", backendtest.Noise(1, 10_000))}, func(b *testing.B, dir string) {
		for b.Loop() {
			if _, err := os.ReadFile(filepath.Join(dir, "file")); err != nil {
				b.Fatal(err)
			}
		}
	})
}
