package build_test

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt/build"
)

// endless streams a tar of so many files of 1 MiB, each different.
func endless(files int) build.Layer {
	block := words(1, 1<<20)
	return build.Layer{Name: "endless", Size: -1, Open: func(context.Context) (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() {
			t := tar.NewWriter(w)
			own := make([]byte, len(block))
			copy(own, block)
			for i := range files {
				for at := 0; at < len(own); at += 32 << 10 {
					binary.LittleEndian.PutUint64(own[at:], uint64(i)<<32|uint64(at))
				}
				h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("file", i), Size: int64(len(own))}
				if err := t.WriteHeader(&h); err != nil {
					break
				}
				if _, err := t.Write(own); err != nil {
					break
				}
			}
			_ = w.CloseWithError(t.Close())
		}()
		return r, nil
	}}
}

// However large the layers, the heap stays near the limit.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("builds from 400 MB")
	}
	const limit = 32 << 20
	for _, o := range []build.Options{
		{MemoryLimit: limit},
		{MemoryLimit: limit, Mode: build.AsImage},
		{MemoryLimit: limit, Trace: []build.Access{{Path: "file3"}, {Path: "file1"}}},
	} {
		runtime.GC()
		var base, now runtime.MemStats
		runtime.ReadMemStats(&base)
		peak := uint64(0)
		o.Progress = func(build.Event) {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
		}
		if _, err := build.Build(t.Context(), []build.Layer{endless(64), endless(64)}, t.TempDir(), o); err != nil {
			t.Fatal(err)
		}
		if used := int64(peak) - int64(base.HeapInuse); used > limit*5/4 {
			t.Errorf("mode %d: the heap grew by %d MiB, the limit is %d", o.Mode, used>>20, limit>>20)
		}
	}
}

func TestProgress(t *testing.T) {
	plain := tree(t)
	l := gzipped(t, plain)
	var mu sync.Mutex
	done := map[int]int{}
	o := small
	o.Progress = func(e build.Event) {
		if !mu.TryLock() {
			t.Error("called by two goroutines at once")
			return
		}
		defer mu.Unlock()
		if e.Size != l.Size || e.Read > e.Size || e.Done != (e.Read == e.Size) {
			t.Errorf("%+v, the layer has %d bytes", e, l.Size)
		}
		if e.Done {
			done[e.Layer]++
		}
	}
	mustBuild(t, o, l, l)
	if done[0] != 1 || done[1] != 1 {
		t.Errorf("done %v", done)
	}
}

func BenchmarkBuild(b *testing.B) {
	plain := makeTar(b, file("a", words(1, 32<<20)), file("b", random(1, 4<<20)))
	for _, format := range []string{"tar", "gzip"} {
		l := layer(compress(b, format, plain), plain)
		for name, mode := range map[string]build.Mode{"blob": build.NewBlob, "image": build.AsImage} {
			b.Run(format+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := build.Build(b.Context(), []build.Layer{l}, b.TempDir(), build.Options{Mode: mode}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
