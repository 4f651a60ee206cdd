package piecestore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

// damage flips a byte of piece i behind the store's back.
func damage(t testing.TB, s *Store, b blob, i int) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.taskPath(b.id), dataName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	off, _ := b.table.Piece(i)
	_, err = f.WriteAt([]byte{^b.data[off]}, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func wantDamaged(t testing.TB, h *Task, i int) {
	t.Helper()
	err := h.Check(t.Context(), i)
	var damaged *DamagedError
	if !errors.As(err, &damaged) || damaged.Piece != i || damaged.ID != h.ID() {
		t.Fatalf("Check(%d) gave %v, want a DamagedError", i, err)
	}
	if h.Has(i) || h.Complete() {
		t.Fatalf("piece %d is held %v, task complete %v after damage", i, h.Has(i), h.Complete())
	}
	if err := h.Check(t.Context(), i); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("second Check(%d) gave %v, want ErrNotHeld", i, err)
	}
}

func TestCheckFindsDamage(t *testing.T) {
	b := newBlob(5, 5*40_000, 40_000)
	harm := map[string]struct {
		do      func(t *testing.T, s *Store)
		damaged []int
	}{
		"byte flipped": {func(t *testing.T, s *Store) { damage(t, s, b, 3) }, []int{3}},
		"file cut": {func(t *testing.T, s *Store) {
			if err := os.Truncate(filepath.Join(s.taskPath(b.id), dataName), 90_000); err != nil {
				t.Fatal(err)
			}
		}, []int{2, 3, 4}},
		"file replaced": {func(t *testing.T, s *Store) {
			path := filepath.Join(s.taskPath(b.id), dataName)
			changed := bytes.Clone(b.data)
			changed[0] ^= 1
			write(t, path+"2", changed)
			if err := os.Rename(path+"2", path); err != nil {
				t.Fatal(err)
			}
		}, []int{0}},
	}
	for name, c := range harm {
		for _, reopen := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				var told []int
				o := Options{Dir: t.TempDir(), OnDamage: func(id task.ID, i int) { told = append(told, i) }}
				s := open(t, o)
				h := create(t, s, b)
				fill(t, h, b, all(b)...)
				if err := errors.Join(h.MarkComplete(), h.CheckRange(t.Context(), 0, 5)); err != nil {
					t.Fatal(err)
				}
				if reopen {
					h.Release()
					closeStore(t, s)
				}
				c.do(t, s)
				if reopen {
					s = open(t, o)
					h, _ = s.Get(b.id)
				}
				defer h.Release()
				f, err := h.File()
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close() //nolint:errcheck // read only
				for _, i := range c.damaged {
					wantDamaged(t, h, i)
				}
				if len(told) != len(c.damaged) || h.HeldCount() != 5-len(c.damaged) {
					t.Fatalf("told of %v, %d pieces held", told, h.HeldCount())
				}
				fill(t, h, b, c.damaged...)
				if err := h.CheckRange(t.Context(), 0, 5); err != nil {
					t.Fatal(err)
				}
				if u := s.Usage(); u.Bytes != b.table.Length {
					t.Fatalf("%d bytes held after repair, want %d", u.Bytes, b.table.Length)
				}
			})
		}
	}
}

// Damage is journalled: it stays dropped after a restart.
func TestDamageIsKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	b := newBlob(6, 30, 10)
	h := create(t, s, b)
	fill(t, h, b, all(b)...)
	damage(t, s, b, 1)
	wantDamaged(t, h, 1)
	h.Release()
	closeStore(t, s)
	s = open(t, Options{Dir: dir})
	if in := s.List()[0]; in.HeldPieces != 2 || in.HeldBytes != 20 {
		t.Fatalf("%+v", in)
	}
}

// A write of ours must not hide what somebody else did before it.
func TestCheckAfterOwnWrite(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	b := newBlob(7, 30, 10)
	h := create(t, s, b)
	defer h.Release()
	fill(t, h, b, 0)
	damage(t, s, b, 0)
	fill(t, h, b, 1)
	wantDamaged(t, h, 0)
	if err := h.Check(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
}

// Files of unreferenced tasks are closed after a while; what was known about
// them must hold when they are opened again.
func TestColdTasks(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	b := newBlob(8, 30, 10)
	put(t, s, b)
	chill := func() {
		for k := range maxWarm {
			put(t, s, newBlob(uint64(1000+k), 8, 8))
		}
	}
	chill()
	h, _ := s.Get(b.id)
	if h.e.data != nil {
		t.Fatal("files are still open")
	}
	if d, ok := h.Digest(2); !ok || d != b.digest(2) {
		t.Fatalf("digest %v, %v", d, ok)
	}
	if h.e.doubt.Len() != 0 {
		t.Fatal("an untouched task is in doubt")
	}
	h.Release()
	chill()
	damage(t, s, b, 2)
	h, _ = s.Get(b.id)
	defer h.Release()
	wantDamaged(t, h, 2)
}

func TestReadAt(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	b := newBlob(9, 35, 10)
	h := create(t, s, b)
	defer h.Release()
	fill(t, h, b, 0, 1, 3)
	for _, c := range []struct {
		off  int64
		n    int
		want error
	}{
		{0, 20, nil}, {5, 10, nil}, {10, 11, ErrNotHeld}, {30, 5, nil}, {30, 6, io.EOF}, {35, 1, io.EOF}, {99, 1, io.EOF}, {-1, 1, os.ErrInvalid},
	} {
		p := make([]byte, c.n)
		n, err := h.ReadAt(p, c.off)
		if !errors.Is(err, c.want) || (n > 0 && !bytes.Equal(p[:n], b.data[c.off:c.off+int64(n)])) {
			t.Errorf("ReadAt(%d, %d) = %d, %v; want %v", c.off, c.n, n, err, c.want)
		}
	}
	r, err := h.PieceReader(3)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b.piece(3)) {
		t.Errorf("piece 3 is %x, error %v", got, err)
	}
	if _, err := h.OpenPieces(t.Context(), 1, 3); !errors.Is(err, ErrNotHeld) {
		t.Errorf("OpenPieces with a missing piece: %v", err)
	}
	f, err := h.OpenPieces(t.Context(), 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.LimitReader(f, 20))
	if err := errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, b.data[:20]) {
		t.Errorf("file has %x, error %v", got, err)
	}
}

func TestReset(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	b := newBlob(10, 3*200_000, 200_000)
	h := create(t, s, b)
	fill(t, h, b, 0, 1)
	sum := h.NewSummer()
	if pos, err := sum.Advance(t.Context()); pos != 400_000 || err != nil {
		t.Fatal(pos, err)
	}
	old, err := h.File()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close() //nolint:errcheck // read only
	// A write in the middle of a Reset must not be held after it.
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := h.WritePiece(t.Context(), 2, nil, r)
		done <- err
	}()
	if _, err := w.Write(b.piece(2)[:150_000]); err != nil {
		t.Fatal(err)
	}
	if err := h.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b.piece(2)[150_000:]); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrSuperseded) {
		t.Fatalf("write across a Reset: %v", err)
	}
	if u := s.Usage(); h.HeldCount() != 0 || u.Bytes != 0 || s.reserved != 0 {
		t.Fatalf("%d pieces held, %+v, %d reserved", h.HeldCount(), u, s.reserved)
	}
	if got, err := io.ReadAll(old); err != nil || !bytes.Equal(got[:400_000], b.data[:400_000]) {
		t.Fatalf("a file opened before has other content now, error %v", err)
	}
	fill(t, h, b, all(b)...)
	if pos, err := sum.Advance(t.Context()); pos != b.table.Length || err != nil {
		t.Fatal(pos, err)
	}
	if want, _ := b.id.Digest(); sum.Sum() != want {
		t.Fatal("wrong sum after Reset")
	}
	h.Release()
	closeStore(t, s)
	s = open(t, Options{Dir: dir})
	h, _ = s.Get(b.id)
	defer h.Release()
	if err := h.CheckRange(t.Context(), 0, 3); err != nil {
		t.Fatal(err)
	}
}
