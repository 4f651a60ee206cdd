package piecestore

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

// crashDir tells the test binary that it is the child of TestKill, and where
// its store is.
const crashDir = "PIECESTORE_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := writeForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func crashBlob(k int) blob { return newBlob(uint64(200+k), 5*150_000, 150_000) }

const crashBlobs = 4

// writeForever writes pieces, evicts and resets, and prints a line for each
// piece that is held, until it is killed.
func writeForever(dir string) error {
	s, err := Open(Options{Dir: dir, Limit: 3 * 750_000})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, crashBlobs)
	for k := range crashBlobs {
		wg.Go(func() { errs <- writeBlobForever(s, crashBlob(k)) })
	}
	wg.Wait()
	return <-errs
}

func writeBlobForever(s *Store, b blob) error {
	for {
		h, err := s.Create(b.id, b.table, "")
		if err != nil {
			return err
		}
		for i := range b.table.Count() {
			// ErrFull is right while the others are in use.
			if _, err := h.WritePiece(context.Background(), i, nil, bytes.NewReader(b.piece(i))); err == nil {
				fmt.Println("held", b.id, i)
			}
		}
		if h.HeldCount() == b.table.Count() {
			if err := h.Reset(); err != nil {
				return err
			}
		}
		h.Release()
	}
}

// TestKill kills a process in the middle of its writes, over and over, on one
// directory. Whatever the store claims afterwards must be right.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rounds, claimed := 12, 0
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		killAfter(t, exe, dir, 3+7*round)
		claimed += verifyAll(t, dir)
	}
	if claimed == 0 {
		t.Error("no round left a piece: nothing was tested")
	}
}

// killAfter runs a writer and kills it when it has reported n held pieces.
func killAfter(t *testing.T, exe, dir string, n int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	seen := 0
	for seen < n && lines.Scan() {
		seen++
	}
	_ = cmd.Process.Kill() // fails if the child died by itself, seen below
	_ = cmd.Wait()         // always an error for a killed process
	if seen < n {
		t.Fatalf("writer ended by itself: %s", stderr.String())
	}
}

// verifyAll opens the store, compares every claimed piece and returns how many
// there are.
func verifyAll(t *testing.T, dir string) int {
	t.Helper()
	s := open(t, Options{Dir: dir})
	defer closeStore(t, s)
	total, bytesHeld := 0, int64(0)
	for k := range crashBlobs {
		b := crashBlob(k)
		h, ok := s.Get(b.id)
		if !ok {
			continue
		}
		for i := range h.Held().All() {
			if err := h.Check(t.Context(), i); err != nil {
				t.Error(err)
			}
			if d, ok := h.Digest(i); !ok || d != b.digest(i) {
				t.Errorf("piece %d of %s has digest %v", i, b.id.Short(), d)
			}
			_, n := b.table.Piece(i)
			total, bytesHeld = total+1, bytesHeld+n
		}
		h.Release()
	}
	if u := s.Usage(); u.Bytes != bytesHeld {
		t.Errorf("usage says %d bytes, held are %d", u.Bytes, bytesHeld)
	}
	for _, name := range []string{scratchDir, trashDir} {
		if left, err := os.ReadDir(filepath.Join(dir, name)); err != nil || len(left) != 0 {
			t.Errorf("%s has %v, error %v", name, left, err)
		}
	}
	return total
}

func TestOpenDropsUnreadableTasks(t *testing.T) {
	good := newBlob(90, 30, 10)
	for name, harm := range map[string]func(t *testing.T, dir string){
		"journal empty":   func(t *testing.T, dir string) { write(t, filepath.Join(dir, journalName), nil) },
		"journal zeros":   func(t *testing.T, dir string) { write(t, filepath.Join(dir, journalName), make([]byte, 999)) },
		"journal missing": func(t *testing.T, dir string) { remove(t, filepath.Join(dir, journalName)) },
		"data missing":    func(t *testing.T, dir string) { remove(t, filepath.Join(dir, dataName)) },
		"data is a link": func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, dataName))
			if err := os.Symlink("/etc/hostname", filepath.Join(dir, dataName)); err != nil {
				t.Fatal(err)
			}
		},
		"journal of another": func(t *testing.T, dir string) {
			b, _, err := encodeHeader(testMeta())
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, journalName), b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, Options{Dir: dir})
			bad := newBlob(91, 30, 10)
			put(t, s, good)
			put(t, s, bad)
			path := s.taskPath(bad.id)
			closeStore(t, s)
			harm(t, path)
			s = open(t, Options{Dir: dir})
			if in := s.List(); len(in) != 1 || in[0].ID != good.id || s.Usage().Bytes != 30 {
				t.Fatalf("%+v", in)
			}
			if _, err := os.Lstat(path); err == nil {
				t.Error("the unreadable task is still there")
			}
			put(t, s, bad)
		})
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	_, err := Open(Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("second Open: %v", err)
	}
	closeStore(t, s)
	open(t, Options{Dir: dir})
}

func TestOpenRefusesOptions(t *testing.T) {
	for _, o := range []Options{{}, {Dir: t.TempDir(), Limit: -1}, {Dir: t.TempDir(), MinFree: -1}} {
		if s, err := Open(o); err == nil {
			closeStore(t, s)
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestCreateRefusesNames(t *testing.T) {
	root := t.TempDir()
	s := open(t, Options{Dir: filepath.Join(root, "a", "b")})
	hex := strings.Repeat("a", 64)
	for _, id := range []string{
		"", ":", "sha256:", "sha256:../../" + hex[6:], "../../../" + hex, "url:" + hex[:60] + "/../", "sha256:" + hex + "/../x",
		"sha512:" + hex, "sha256:" + strings.ToUpper(hex), "sha256:" + hex[1:] + "\x00", "..:" + hex, hex,
	} {
		if h, err := s.Create(task.ID(id), task.Table{Length: 1, PieceSize: 1}, ""); err == nil {
			h.Release()
			t.Errorf("%q was accepted", id)
		}
		if _, ok := s.Get(task.ID(id)); ok {
			t.Errorf("%q was found", id)
		}
	}
	if names, err := os.ReadDir(s.path(tasksDir)); err != nil || len(names) != 0 {
		t.Errorf("tasks has %v, error %v", names, err)
	}
	if names, err := os.ReadDir(root); err != nil || len(names) != 1 {
		t.Errorf("outside the store there is %v, error %v", names, err)
	}
	b := newBlob(92, 30, 10)
	h := create(t, s, b)
	h.Release()
	if _, err := s.Create(b.id, task.Table{Length: 30, PieceSize: 15}, ""); err == nil {
		t.Error("another table was accepted")
	}
	if _, err := s.Create(b.id, task.Table{Length: -1, PieceSize: 15}, ""); err == nil {
		t.Error("an invalid table was accepted")
	}
	if in := s.List()[0]; in.Refs != 0 || in.Source == "" {
		t.Errorf("%+v", in)
	}
}

func TestConcurrentCreate(t *testing.T) {
	s := open(t, Options{Dir: t.TempDir(), Limit: 2000})
	var wg sync.WaitGroup
	for k := range 64 {
		wg.Go(func() {
			b := newBlob(uint64(300+k%6), 400, 50)
			h, err := s.Create(b.id, b.table, "")
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Release()
			for i := range b.table.Count() {
				if h.Has(i) {
					continue
				}
				// With all six in use not everything fits.
				_, _ = h.WritePiece(t.Context(), i, nil, bytes.NewReader(b.piece(i)))
			}
			if k%8 == 0 {
				_, _, err = s.Prune(800)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	held := int64(0)
	for _, in := range s.List() {
		held += in.HeldBytes
		if in.Refs != 0 {
			t.Errorf("%+v", in)
		}
	}
	if u := s.Usage(); u.Bytes != held || u.Bytes > 2000 || s.reserved != 0 {
		t.Errorf("%+v, held %d, reserved %d", u, held, s.reserved)
	}
}
