package piecestore

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

func testMeta() meta {
	return meta{
		ID:      task.BlobID(task.Digest{1, 2, 3}),
		Table:   task.Variable([]int64{5, 70_000, 70_001}),
		Source:  "https://registry.example/v2/a/blobs",
		Created: time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC),
	}
}

// testJournal returns a journal and the pieces held after each of its records.
func testJournal(t testing.TB) (b []byte, header int, held [][]int) {
	t.Helper()
	b, crc, err := encodeHeader(testMeta())
	if err != nil {
		t.Fatal(err)
	}
	header = len(b)
	for _, step := range []struct {
		r    record
		held []int
	}{
		{record{kind: recHeld, index: 2, payload: task.Digest{22}}, []int{2}},
		{record{kind: recHeld, index: 0, payload: task.Digest{20}}, []int{0, 2}},
		{pinRecord(time.Unix(0, 77)), []int{0, 2}},
		{record{kind: recDropped, index: 2}, []int{0}},
		{record{kind: recHeld, index: 1, payload: task.Digest{21}}, []int{0, 1}},
		{record{kind: recHeld, index: 2, payload: task.Digest{32}}, []int{0, 1, 2}},
		{record{kind: recComplete}, []int{0, 1, 2}},
		{record{kind: recReset}, nil},
		{record{kind: recHeld, index: 1, payload: task.Digest{41}}, []int{1}},
	} {
		b = appendRecord(b, crc, step.r)
		held = append(held, step.held)
	}
	return b, header, held
}

func decode(b []byte) (replay, error) {
	return decodeJournal(bufio.NewReader(bytes.NewReader(b)), true)
}

func TestJournalBytes(t *testing.T) {
	got := appendRecord(nil, 0x01020304, record{kind: recHeld, index: 0x0a0b, payload: task.Digest{0xff, 31: 0xee}})
	const want = "01" + "0b0a0000" + "ff000000000000000000000000000000000000000000000000000000000000ee"
	if s := hex.EncodeToString(got[:recordSize-4]); s != want {
		t.Errorf("record is %s, want %s", s, want)
	}
	header, _, err := encodeHeader(testMeta())
	if err != nil {
		t.Fatal(err)
	}
	if s := hex.EncodeToString(header[:12]); s != hex.EncodeToString([]byte("dfpieces"))+"01000000" {
		t.Errorf("header begins with %s", s)
	}
}

func TestJournalTruncatedAnywhere(t *testing.T) {
	b, header, held := testJournal(t)
	for n := range len(b) + 1 {
		p, err := decode(b[:n])
		if n < header {
			if !errors.Is(err, errCorrupt) {
				t.Fatalf("%d bytes: error %v, want a damaged journal", n, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		records := (n - header) / recordSize
		var want []int
		if records > 0 {
			want = held[records-1]
		}
		if got := slices.Collect(p.held.All()); !slices.Equal(got, want) || p.records != records {
			t.Fatalf("%d bytes: held %v after %d records, want %v after %d", n, got, p.records, want, records)
		}
		if p.torn != ((n-header)%recordSize != 0) || p.complete != (records == 7) {
			t.Fatalf("%d bytes: torn %v, complete %v", n, p.torn, p.complete)
		}
	}
}

func TestJournalFlippedAnywhere(t *testing.T) {
	b, header, held := testJournal(t)
	for at := range b {
		damaged := bytes.Clone(b)
		damaged[at] ^= 0x10
		p, err := decode(damaged)
		if at < header {
			if !errors.Is(err, errCorrupt) {
				t.Fatalf("byte %d of the header: error %v", at, err)
			}
			continue
		}
		record := (at - header) / recordSize
		var want []int
		if record > 0 {
			want = held[record-1]
		}
		if got := slices.Collect(p.held.All()); err != nil || !p.torn || !slices.Equal(got, want) {
			t.Fatalf("byte %d: held %v, want %v; torn %v, error %v", at, got, want, p.torn, err)
		}
	}
}

func TestJournalMeta(t *testing.T) {
	for name, table := range map[string]task.Table{
		"uniform": {Length: 10, PieceSize: 3}, "variable": task.Variable([]int64{1, 1 << 33 >> 1, 1 << 33 >> 1 << 1}),
		"empty": {PieceSize: 1}, "empty variable": task.Variable([]int64{}),
	} {
		m := testMeta()
		m.Table = table
		b, _, err := encodeHeader(m)
		if err != nil {
			t.Fatal(name, err)
		}
		p, err := decode(b)
		if err != nil || !p.meta.Table.Equal(table) || p.meta.ID != m.ID || p.meta.Source != m.Source || !p.meta.Created.Equal(m.Created) {
			t.Errorf("%s: %+v, error %v", name, p.meta, err)
		}
	}
}

// A record of one task means nothing in the journal of another.
func TestJournalForeignRecord(t *testing.T) {
	m := testMeta()
	mine, _, _ := encodeHeader(m)
	m.Source = "elsewhere"
	_, crc, _ := encodeHeader(m)
	p, err := decode(appendRecord(mine, crc, record{kind: recHeld}))
	if err != nil || p.held.Len() != 0 || !p.torn {
		t.Errorf("held %v, torn %v, error %v", p.held, p.torn, err)
	}
}

func FuzzJournal(f *testing.F) {
	b, header, _ := testJournal(f)
	f.Add(b)
	f.Add(b[:header])
	f.Add(b[:header+recordSize/2])
	f.Add([]byte(journalMagic))
	f.Add([]byte(strings.Replace(string(b), `"length":70001`, `"length":70002`, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b)
		if err != nil {
			return
		}
		if err := p.meta.Table.Validate(); err != nil {
			t.Fatal(err)
		}
		if _, err := task.ParseID(string(p.meta.ID)); err != nil {
			t.Fatal(err)
		}
		n := p.meta.Table.Count()
		if p.held.Len() > n || len(p.digests) != n || (p.complete && p.held.Len() != n) || p.size > int64(len(b)) {
			t.Fatalf("%d held of %d, complete %v, size %d of %d", p.held.Len(), n, p.complete, p.size, len(b))
		}
		again, err := decode(b[:p.size])
		if err != nil || again.torn || !slices.Equal(again.held, p.held) {
			t.Fatalf("the good part reads differently: %+v, error %v", again, err)
		}
	})
}

// Opening a store whose journal ends anywhere claims no more than was
// journalled, repairs the journal, and goes on.
func TestOpenAfterTornJournal(t *testing.T) {
	b := newBlob(3, 40, 10)
	// The length of a time in the header depends on its trailing zeros.
	now := func() time.Time { return time.Unix(1_800_000_000, 0) }
	build := t.TempDir()
	s := open(t, Options{Dir: build, Now: now})
	put(t, s, b)
	dir := s.taskPath(b.id)
	closeStore(t, s)
	journal, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	header := len(journal) - 4*recordSize
	for n := range len(journal) + 1 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, journalName), journal[:n])
		write(t, filepath.Join(dir, dataName), b.data)
		s := open(t, Options{Dir: build, Now: now})
		h, ok := s.Get(b.id)
		if ok != (n >= header) {
			t.Fatalf("%d bytes: task found: %v", n, ok)
		}
		if !ok {
			h = create(t, s, b)
		}
		if want := max(0, n-header) / recordSize; h.HeldCount() != want {
			t.Fatalf("%d bytes: %d pieces held, want %d", n, h.HeldCount(), want)
		}
		fill(t, h, b, all(b)...)
		if err := h.CheckRange(t.Context(), 0, 4); err != nil {
			t.Fatal(err)
		}
		h.Release()
		closeStore(t, s)
		if got, err := os.ReadFile(filepath.Join(dir, journalName)); err != nil || len(got) != len(journal) {
			t.Fatalf("%d bytes: the repaired journal has %d, want %d; error %v", n, len(got), len(journal), err)
		}
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A task that is pinned over and over keeps a short journal, and its state.
func TestJournalCompaction(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	b := newBlob(4, 30, 10)
	h := create(t, s, b)
	fill(t, h, b, 0, 2)
	until := time.Now().Add(time.Hour)
	for range 3 * compactSlack {
		until = until.Add(time.Second)
		if err := s.Pin(b.id, until); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, h, b, 1)
	if err := h.MarkComplete(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(s.taskPath(b.id), journalName))
	if err != nil || st.Size() > 2*compactSlack*recordSize {
		t.Fatalf("journal of %d bytes, error %v", st.Size(), err)
	}
	h.Release()
	closeStore(t, s)
	s = open(t, Options{Dir: dir})
	if in := s.List()[0]; in.HeldPieces != 3 || !in.Complete || !in.PinnedUntil.Equal(until) {
		t.Fatalf("after reopening %+v, want pinned until %v", in, until)
	}
}
