package piecestore

import (
	"bytes"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

func BenchmarkWritePiece(b *testing.B) {
	s := open(b, Options{Dir: b.TempDir()})
	src := newBlob(1, 64<<20, 1<<20)
	h := create(b, s, src)
	defer h.Release()
	n := src.table.Count()
	digests := make([]task.Digest, n)
	for i := range n {
		digests[i] = src.digest(i)
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	r := bytes.NewReader(nil)
	for k := 0; b.Loop(); k++ {
		if k%n == 0 && k > 0 {
			b.StopTimer()
			if err := h.Reset(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		r.Reset(src.piece(k % n))
		if _, err := h.WritePiece(b.Context(), k%n, &digests[k%n], r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := open(b, Options{Dir: dir})
	for k := range 2000 {
		src := newBlob(uint64(k), 64*16, 16)
		put(b, s, src)
	}
	closeStore(b, s)
	for b.Loop() {
		s, err := Open(Options{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if u := s.Usage(); u.Tasks != 2000 || u.Bytes != 2000*64*16 {
			b.Fatalf("%+v", u)
		}
		closeStore(b, s)
	}
}

func BenchmarkCheck(b *testing.B) {
	s := open(b, Options{Dir: b.TempDir()})
	src := newBlob(1, 1<<20, 1<<20)
	put(b, s, src)
	h, _ := s.Get(src.id)
	defer h.Release()
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Check(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
	}
}
