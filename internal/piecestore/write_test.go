package piecestore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

func TestWritePieceErrors(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	b := newBlob(11, 3*300_000, 300_000)
	h := create(t, s, b)
	defer h.Release()
	want, broken := b.digest(0), errors.New("broken")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	bad := bytes.Clone(b.piece(0))
	bad[299_999] ^= 1
	for _, c := range []struct {
		name string
		ctx  context.Context
		i    int
		r    io.Reader
		want error
	}{
		{"empty", t.Context(), 0, bytes.NewReader(nil), io.ErrUnexpectedEOF},
		{"short", t.Context(), 0, bytes.NewReader(b.piece(0)[:299_999]), io.ErrUnexpectedEOF},
		{"reader fails", t.Context(), 0, io.MultiReader(bytes.NewReader(bad[:200_000]), iotest.ErrReader(broken)), broken},
		{"canceled", canceled, 0, bytes.NewReader(b.piece(0)), context.Canceled},
	} {
		if _, err := h.WritePiece(c.ctx, c.i, &want, c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, i := range []int{-1, 3, 1 << 40} {
		if _, err := h.WritePiece(t.Context(), i, nil, bytes.NewReader(b.data)); err == nil {
			t.Errorf("piece %d was accepted", i)
		}
	}
	var digestErr *DigestError
	if _, err := h.WritePiece(t.Context(), 0, &want, bytes.NewReader(bad)); !errors.As(err, &digestErr) || digestErr.Want != want {
		t.Errorf("wrong bytes: %v", err)
	}
	if h.HeldCount() != 0 || s.reserved != 0 || len(h.e.slots) != 0 {
		t.Errorf("after errors: %d held, %d reserved, %d slots", h.HeldCount(), s.reserved, len(h.e.slots))
	}
	// More than the piece is left in the reader; a held piece takes nothing.
	r := bytes.NewReader(b.data)
	if d, err := h.WritePiece(t.Context(), 0, nil, iotest.HalfReader(r)); err != nil || d != want || r.Len() != 600_000 {
		t.Errorf("digest %v, error %v, %d bytes left", d, err, r.Len())
	}
	if d, err := h.WritePiece(t.Context(), 0, nil, r); err != nil || d != want || r.Len() != 600_000 {
		t.Errorf("again: digest %v, error %v, %d bytes left", d, err, r.Len())
	}
}

// A slow writer of bad bytes owns the piece; a good one takes it over, and the
// slow one can do no more harm.
func TestTakeover(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	b := newBlob(12, 3*bufferSize, 3*bufferSize)
	h := create(t, s, b)
	defer h.Release()
	r, w := io.Pipe()
	type result struct {
		d   task.Digest
		err error
	}
	want := b.digest(0)
	done := make(chan result, 1)
	go func() {
		d, err := h.WritePiece(t.Context(), 0, &want, r)
		_ = r.Close() // never fails
		done <- result{d, err}
	}()
	junk := make([]byte, bufferSize)
	if _, err := w.Write(junk); err != nil {
		t.Fatal(err)
	}
	fill(t, h, b, 0)
	// The fence refuses this chunk, or has refused the first one by now.
	if _, err := w.Write(junk); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	got := <-done
	if got.err != nil || got.d != want {
		t.Fatalf("the slow writer got %v, %v", got.d, got.err)
	}
	if p, err := io.ReadAll(io.NewSectionReader(h, 0, b.table.Length)); err != nil || !bytes.Equal(p, b.data) {
		t.Fatalf("held bytes were overwritten, error %v", err)
	}
	if u := s.Usage(); u.Bytes != b.table.Length || s.reserved != 0 {
		t.Fatalf("%+v, %d reserved", u, s.reserved)
	}
}

// pacedReader yields small random portions so that writers interleave.
type pacedReader struct {
	r   io.Reader
	rng *rand.Rand
}

func (p pacedReader) Read(b []byte) (int, error) {
	return p.r.Read(b[:min(len(b), 1+p.rng.IntN(bufferSize))])
}

// Many writers of the same pieces, half of them with bad bytes; readers check
// all the time that what is held is right.
func TestDuplicateWriters(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	b := newBlob(13, 2*(2*bufferSize+777), 2*bufferSize+777)
	h := create(t, s, b)
	defer h.Release()
	for round := range rounds {
		var wg sync.WaitGroup
		for k := range 8 {
			wg.Go(func() {
				i, rng := k%2, rand.New(rand.NewPCG(uint64(round), uint64(k)))
				data, want := bytes.Clone(b.piece(i)), b.digest(i)
				bad := k/2%2 == 1
				if bad {
					data[rng.IntN(len(data))] ^= 0x40
				}
				_, err := h.WritePiece(t.Context(), i, &want, pacedReader{bytes.NewReader(data), rng})
				var digestErr *DigestError
				if err != nil && (!bad || !errors.As(err, &digestErr)) {
					t.Errorf("round %d, writer %d: %v", round, k, err)
				}
			})
		}
		for i := range 2 {
			wg.Go(func() { verifyWhenHeld(t, h, b, i) })
		}
		wg.Wait()
		if err := h.Reset(); err != nil || s.reserved != 0 || len(h.e.slots) != 0 {
			t.Fatalf("round %d: error %v, %d reserved, %d slots", round, err, s.reserved, len(h.e.slots))
		}
	}
}

func verifyWhenHeld(t *testing.T, h *Task, b blob, i int) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Wait(ctx, i); err != nil {
		t.Error(err)
		return
	}
	for range 5 {
		r, err := h.PieceReader(i)
		if err != nil {
			t.Error(err)
			return
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b.piece(i)) {
			t.Errorf("held piece %d has wrong bytes, error %v", i, err)
		}
	}
	if err := h.Check(ctx, i); err != nil {
		t.Error(err)
	}
}

func TestWaitAndSubscribe(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir()})
	b := newBlob(14, 30, 10)
	h := create(t, s, b)
	changed, cancel := h.Subscribe()
	fill(t, h, b, 0, 1)
	<-changed
	select {
	case <-changed:
		t.Error("two values for changes nobody waited between")
	default:
	}
	if err := h.MarkComplete(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("MarkComplete with a piece missing: %v", err)
	}
	fill(t, h, b, 2)
	<-changed
	if err := h.MarkComplete(); err != nil {
		t.Error(err)
	}
	<-changed
	cancel()
	if err := h.Reset(); err != nil {
		t.Error(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := h.Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with an ended context: %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- h.Wait(t.Context(), 1) }()
	closeStore(t, s)
	if err := <-waited; !errors.Is(err, ErrClosed) {
		t.Errorf("Wait across Close: %v", err)
	}
	for name, err := range map[string]error{
		"Check": h.Check(t.Context(), 1), "Reset": h.Reset(), "MarkComplete": h.MarkComplete(), "Pin": s.Pin(b.id, time.Now()), "Remove": s.Remove(b.id),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := h.WritePiece(t.Context(), 0, nil, bytes.NewReader(b.data)); !errors.Is(err, ErrClosed) {
		t.Errorf("WritePiece after Close: %v", err)
	}
	h.Release()
}
