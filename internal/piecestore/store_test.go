package piecestore

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

// content returns n bytes that depend on seed.
func content(seed uint64, n int64) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// blob is a task with its content.
type blob struct {
	id    task.ID
	table task.Table
	data  []byte
}

func newBlob(seed uint64, n, pieceSize int64) blob {
	data := content(seed, n)
	return blob{id: task.BlobID(sha256.Sum256(data)), table: task.Table{Length: n, PieceSize: pieceSize}, data: data}
}

func (b blob) piece(i int) []byte {
	off, n := b.table.Piece(i)
	return b.data[off : off+n]
}

func (b blob) digest(i int) task.Digest { return sha256.Sum256(b.piece(i)) }

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func create(t testing.TB, s *Store, b blob) *Task {
	t.Helper()
	h, err := s.Create(b.id, b.table, "https://registry.example/"+b.id.Short())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func fill(t testing.TB, h *Task, b blob, pieces ...int) {
	t.Helper()
	for _, i := range pieces {
		want := b.digest(i)
		if _, err := h.WritePiece(t.Context(), i, &want, bytes.NewReader(b.piece(i))); err != nil {
			t.Fatal(err)
		}
	}
}

func all(b blob) []int {
	var pieces []int
	for i := range b.table.Count() {
		pieces = append(pieces, i)
	}
	return pieces
}

// put makes a whole task and releases it.
func put(t testing.TB, s *Store, b blob) {
	t.Helper()
	h := create(t, s, b)
	defer h.Release()
	fill(t, h, b, all(b)...)
}

func TestWriteAndReopen(t *testing.T) {
	dir := t.TempDir()
	b := newBlob(1, 1<<20+123, 300<<10)
	s := open(t, Options{Dir: dir})
	h := create(t, s, b)
	fill(t, h, b, all(b)...)
	if err := h.MarkComplete(); err != nil {
		t.Fatal(err)
	}
	h.Release()
	closeStore(t, s)

	s = open(t, Options{Dir: dir})
	h, ok := s.Get(b.id)
	if !ok || !h.Complete() || h.HeldCount() != b.table.Count() || !h.Table().Equal(b.table) {
		t.Fatalf("after reopening: found %v, %+v", ok, s.List())
	}
	defer h.Release()
	sum := h.NewSummer()
	pos, err := sum.Advance(t.Context())
	if want, _ := b.id.Digest(); err != nil || pos != b.table.Length || sum.Sum() != want {
		t.Fatalf("sum at %d: %v, error %v", pos, sum.Sum(), err)
	}
	got, err := io.ReadAll(io.NewSectionReader(h, 0, b.table.Length))
	if err != nil || !bytes.Equal(got, b.data) {
		t.Fatalf("content differs, error %v", err)
	}
	if u := s.Usage(); u.Bytes != b.table.Length || u.Tasks != 1 || u.Free <= 0 {
		t.Fatalf("usage %+v", u)
	}
}
