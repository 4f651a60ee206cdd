package fanotify

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/damselfly-io/damselfly/internal/fdkeeper"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// roleEnv makes the test binary serve a group that it gets as descriptor 3, with
// the ring as 4 and the writer as 5, until it is killed.
const roleEnv = "DAMSELFLY_TEST_FANOTIFY_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := child(role); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// child tells on standard output what it has reached.
func child(role string) error {
	if path, ok := strings.CutPrefix(role, "make "); ok {
		return makeAndServe(path)
	}
	group, ring := os.NewFile(3, "group"), os.NewFile(4, "ring")
	writer := os.NewFile(5, "writer")
	w, err := Restore(context.Background(), group, ring, Options{})
	if err != nil {
		return err
	}
	fmt.Println("serving")
	switch role {
	case "hang": // killed in the handler
		return w.Serve(context.Background(), func(_ context.Context, off, n int64) error {
			fmt.Println("event", off, n)
			select {}
		})
	case "fill":
		return w.Serve(context.Background(), func(_ context.Context, off, n int64) error {
			fmt.Println("event", off, n)
			return fill(writer, off, n)
		})
	}
	return stepwise(w, role, writer)
}

// makeAndServe does what the snapshotter does with a new device: descriptor 3 is
// the writer, and a keeper listens at socket.
func makeAndServe(socket string) error {
	writer := os.NewFile(3, "writer")
	w, err := New(Options{})
	if err != nil {
		return err
	}
	keeper := fdkeeper.NewClient(socket)
	set := fdkeeper.Set{Name: "device", Files: append(w.Files(), writer)}
	if err := errors.Join(keeper.Put(context.Background(), set), w.Mark(writer)); err != nil {
		return err
	}
	fmt.Println("serving")
	return w.Serve(context.Background(), func(_ context.Context, off, n int64) error {
		fmt.Println("event", off, n)
		select {}
	})
}

// stepwise does with one event what serveSlot does, up to a point, and is killed
// there.
func stepwise(w *Watch, role string, writer *os.File) error {
	conn, err := w.group.SyscallConn()
	if err != nil {
		return err
	}
	s := &session{group: w.group, conn: conn, ring: w.ring}
	if refused, err := s.readInto(w.ring.slot(1)); refused != nil || err != nil {
		return errors.Join(refused, err)
	}
	if role == "read" {
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	events, err := parse(w.ring.slot(1))
	if err != nil {
		return err
	}
	e := events[0]
	if err := fill(writer, e.off, e.n); err != nil {
		return err
	}
	if role == "filled" {
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if err := s.respond(e.fd, unix.FAN_ALLOW); err != nil {
		return err
	}
	// The descriptor is still open: the next event has another number.
	if refused, err := s.readInto(w.ring.slot(2)); refused != nil || err != nil {
		return errors.Join(refused, err)
	}
	if role == "answered" {
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return errors.New("unknown role " + role)
}

// server is a child process.
type server struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

// start runs a child that serves what this process keeps.
func start(t *testing.T, role string, files ...*os.File) *server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.ExtraFiles = files
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{cmd: cmd, lines: bufio.NewScanner(out)}
	t.Cleanup(s.kill)
	s.await(t, "serving")
	return s
}

// await reads lines of the child until one that begins with prefix.
func (s *server) await(t *testing.T, prefix string) {
	t.Helper()
	for s.lines.Scan() {
		if strings.HasPrefix(s.lines.Text(), prefix) {
			return
		}
		if strings.HasPrefix(s.lines.Text(), "error") {
			t.Fatal(s.lines.Text())
		}
	}
	t.Fatalf("the child ended before it printed %q", prefix)
}

// kill ends the child with SIGKILL and waits for it.
func (s *server) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// orphanage is a marked file whose group nobody serves, kept by this process.
func orphanage(t *testing.T, size int64) (f, group, ring *os.File) {
	t.Helper()
	f = sparse(t, size)
	w := newWatch(t)
	group, ring = keep(t, w)
	if err := w.Mark(f); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f, group, ring
}

// restore takes over from a killed child.
func restore(t *testing.T, group, ring *os.File) *Watch {
	t.Helper()
	w, err := Restore(t.Context(), dup(t, group), dup(t, ring), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, w) })
	return w
}

func TestSuccessorAnswersOrphansBeforeItReads(t *testing.T) {
	f, group, ring := orphanage(t, 1<<20)
	hung := start(t, "hang", group, ring, f)
	var reads []<-chan result
	for i := range int64(5) {
		reads = append(reads, read(f.Name(), i*8192, 8192))
		hung.await(t, "event")
	}
	hung.kill()
	// Two readers come while nobody serves.
	for i := int64(5); i < 7; i++ {
		reads = append(reads, read(f.Name(), i*8192, 8192))
	}
	testenv.Eventually(t, func() bool { return waiting(t) == 7 }, "seven readers in the kernel")
	for _, r := range reads {
		stillBlocked(t, r)
	}
	w := restore(t, group, ring)
	if n := w.Pending(); n != 5 {
		t.Errorf("%d orphans, want 5", n)
	}
	release, orphans := make(chan struct{}), make(chan int64, 7)
	serve(t, w, func(_ context.Context, off, n int64) error {
		orphans <- off
		<-release
		return fill(f, off, n)
	})
	seen := map[int64]bool{}
	for range 5 {
		seen[<-orphans] = true
	}
	for i := range int64(5) {
		if !seen[i*8192] {
			t.Errorf("the orphan at %d was not handled first", i*8192)
		}
	}
	for _, r := range reads {
		stillBlocked(t, r)
	}
	close(release)
	for i, r := range reads {
		expect(t, r, int64(i)*8192)
	}
}

func TestRefusedOrphan(t *testing.T) {
	f, group, ring := orphanage(t, 1<<20)
	hung := start(t, "hang", group, ring, f)
	r := read(f.Name(), 0, 4096)
	hung.await(t, "event")
	hung.kill()
	serve(t, restore(t, group, ring), func(context.Context, int64, int64) error { return errors.New("gone") })
	if got := <-r; !errors.Is(got.err, unix.EIO) {
		t.Errorf("read: %v, want EIO", got.err)
	}
}

// TestKilledReader: the kernel keeps an event whose reader has died until it is
// answered.
func TestKilledReader(t *testing.T) {
	f, group, ring := orphanage(t, 1<<20)
	w := restore(t, group, ring)
	entered, release := make(chan struct{}, 1), make(chan struct{})
	serve(t, w, func(_ context.Context, off, n int64) error {
		entered <- struct{}{}
		<-release
		return fill(f, off, n)
	})
	cat := exec.Command(testenv.Tool(t, "cat"), f.Name())
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := cat.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(); err == nil {
		t.Error("cat ended well")
	}
	close(release)
	testenv.Eventually(t, func() bool { return w.Pending() == 0 }, "the dead reader's event answered")
	expect(t, read(f.Name(), 0, 4096), 0)
}

// TestEveryKillPoint ends a child with SIGKILL at each point between reading an
// event and emptying its slot.
func TestEveryKillPoint(t *testing.T) {
	for role, orphans := range map[string]int{"read": 1, "filled": 1, "answered": 2} {
		t.Run(role, func(t *testing.T) {
			f, group, ring := orphanage(t, 1<<20)
			s := start(t, role, group, ring, f)
			first := read(f.Name(), 0, 4096)
			if role == "answered" {
				expect(t, first, 0)
				first = read(f.Name(), 8192, 4096)
			}
			if err := s.cmd.Wait(); err == nil {
				t.Fatal("the child was not killed")
			}
			stillBlocked(t, first)
			w := restore(t, group, ring)
			if n := w.Pending(); n != orphans {
				t.Errorf("%d orphans, want %d", n, orphans)
			}
			serve(t, w, func(_ context.Context, off, n int64) error { return fill(f, off, n) })
			off := int64(0)
			if role == "answered" {
				off = 8192
			}
			expect(t, first, off)
			expect(t, read(f.Name(), 16384, 4096), 16384)
		})
	}
}

// TestKeeperHandsOver kills the process that made the group, which nobody but a
// keeper has then.
func TestKeeperHandsOver(t *testing.T) {
	f := sparse(t, 1<<20)
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	l, err := fdkeeper.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	keeper := fdkeeper.NewServer(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- keeper.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, keeper.Close()); err != nil {
			t.Error(err)
		}
	})
	s := start(t, "make "+socket, f)
	r := read(f.Name(), 4096, 4096)
	s.await(t, "event")
	s.kill()
	stillBlocked(t, r)

	client := fdkeeper.NewClient(socket)
	t.Cleanup(func() { closing(t, client) })
	set, err := client.Get(t.Context(), "device")
	if err != nil {
		t.Fatal(err)
	}
	w, err := Restore(t.Context(), set.Files[0], set.Files[1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, w) })
	writer := set.Files[2]
	t.Cleanup(func() { closing(t, writer) })
	if marked, err := w.Marked(writer); err != nil || !marked {
		t.Errorf("Marked: %t, %v", marked, err)
	}
	serve(t, w, func(_ context.Context, off, n int64) error { return fill(writer, off, n) })
	expect(t, r, 4096)
	expect(t, read(f.Name(), 65536, 4096), 65536)
}

// TestKillsAtRandom kills servers one after the other while many read, and
// looks for a wrong byte.
func TestKillsAtRandom(t *testing.T) {
	const size, readers, step = 16 << 20, 8, 16 << 10
	f, group, ring := orphanage(t, size)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for off := next.Add(step) - step; off < size; off = next.Add(step) - step {
				expect(t, read(f.Name(), off, step), off)
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	kills, orphans := 0, 0
	for kills < 12 {
		s := start(t, "fill", group, ring, f)
		for range rand.IntN(60) + 1 {
			if next.Load() >= size-readers*step {
				break
			}
			s.await(t, "event")
		}
		s.kill()
		kills++
		w := restore(t, group, ring)
		orphans += w.Pending()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, restore(t, group, ring), func(_ context.Context, off, n int64) error { return fill(f, off, n) })
	<-ended
	t.Logf("%d kills left %d orphans", kills, orphans)
}
