package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestHolder(t *testing.T) {
	s, c := pair(t)
	ctx := t.Context()
	f := files(t, 5)
	if _, err := c.Get(ctx, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	put := func(name string, stamp uint64, meta string, f ...*os.File) {
		t.Helper()
		if err := c.Put(ctx, Set{Name: name, Stamp: stamp, Meta: []byte(meta), Files: f}); err != nil {
			t.Fatal(err)
		}
	}
	put("b", 7, "bee", f[0], f[1])
	put("a", 8, "", f[2])
	put("b", 9, "newer", f[3], f[4])
	got, err := c.Get(ctx, "b")
	if err != nil || got.Name != "b" || got.Stamp != 9 || string(got.Meta) != "newer" {
		t.Fatalf("Get: %+v, %v", got, err)
	}
	same(t, got, f[3:])
	if err := c.Put(ctx, Set{Name: "b", Stamp: 8, Files: f[:1]}); !errors.Is(err, ErrStale) {
		t.Errorf("Put of an older one: %v, want ErrStale", err)
	}
	want := []Entry{{"a", 8, 1}, {"b", 9, 2}}
	if got, err := c.List(ctx); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("List: %v, %v, want %v", got, err, want)
	}
	if sets, fds := s.Held(); sets != 2 || fds != 3 {
		t.Errorf("held %d sets, %d descriptors", sets, fds)
	}
	for range 2 {
		if err := c.Drop(ctx, "b"); err != nil {
			t.Errorf("Drop: %v", err)
		}
	}
	if sets, fds := s.Held(); sets != 1 || fds != 1 {
		t.Errorf("held %d sets, %d descriptors after Drop", sets, fds)
	}
}

func TestLimits(t *testing.T) {
	_, c := pair(t)
	f := files(t, 1)[0]
	many := func(n int) []*os.File {
		out := make([]*os.File, n)
		for i := range out {
			out[i] = f
		}
		return out
	}
	long := strings.Repeat("n", MaxName)
	meta := []byte(strings.Repeat("m", MaxMeta))
	if err := c.Put(t.Context(), Set{Name: long, Meta: meta, Files: many(MaxFiles)}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(t.Context(), long)
	if err != nil || !reflect.DeepEqual(got.Meta, meta) {
		t.Fatalf("largest set: %v", err)
	}
	same(t, got, many(MaxFiles))
	for name, s := range map[string]Set{
		"no name":       {Files: many(1)},
		"long name":     {Name: long + "n", Files: many(1)},
		"colon":         {Name: "a:b", Files: many(1)},
		"control":       {Name: "a\nb", Files: many(1)},
		"no files":      {Name: "a"},
		"many files":    {Name: "a", Files: many(MaxFiles + 1)},
		"much metadata": {Name: "a", Files: many(1), Meta: append(meta, 0)},
	} {
		if err := c.Put(t.Context(), s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	closing(t, f)
	if err := c.Put(t.Context(), Set{Name: "closed", Files: many(1)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Put of a closed file: %v", err)
	}
}

func TestServerRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	_, stop := startServer(t, path)
	c := newClient(t, path)
	f := files(t, 1)
	put := func() error { return c.Put(t.Context(), Set{Name: "a", Files: f}) }
	if err := put(); err != nil {
		t.Fatal(err)
	}
	first, err := c.Instance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if err := put(); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Put without a server: %v", err)
	}
	if _, err := c.Get(t.Context(), "a"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Get without a server: %v, want neither nil nor ErrNotFound", err)
	}
	startServer(t, path)
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get from a new server: %v", err)
	}
	second, err := c.Instance(t.Context())
	if err != nil || second == first {
		t.Errorf("instances %d and %d, %v", first, second, err)
	}
	if _, err := Listen(t.Context(), path); err == nil {
		t.Error("two servers at one socket")
	}
}

func TestClientGivesUpWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "silent.sock")
	l, err := Listen(t.Context(), path) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	if _, err := newClient(t, path).List(ctx); !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
		t.Errorf("List: %v", err)
	}
}

// TestBadClients: whatever a client sends, nothing leaks, and others go on.
func TestBadClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	startServer(t, path)
	c := newClient(t, path)
	if _, err := c.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := countOpen(t)
	put := message{kind: kindPut, name: "x", body: []byte("meta")}.encode()
	greeted := func(b []byte) [][]byte { return [][]byte{hello().encode(), b} }
	newer := hello()
	newer.stamp++
	for name, packets := range map[string][][]byte{
		"no hello":           {put},
		"newer version":      {newer.encode()},
		"other hello":        {message{kind: kindHello, stamp: Version, body: []byte("GET /")}.encode()},
		"empty packet":       {{}},
		"short":              greeted(put[:10]),
		"truncated":          greeted(put[:len(put)-1]),
		"trailing byte":      greeted(append(put[:len(put):len(put)], 0)),
		"unknown kind":       greeted(message{kind: 99}.encode()),
		"reply":              greeted(message{kind: kindOK}.encode()),
		"get with files":     greeted(message{kind: kindGet, name: "x"}.encode()),
		"put without a name": greeted(message{kind: kindPut}.encode()),
		"too long":           greeted(make([]byte, maxMessage+1)),
	} {
		t.Run(name, func(t *testing.T) {
			bad(t, path, packets)
			settled(t, before)
		})
	}
	if got, err := c.List(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("List afterwards: %v, %v", got, err)
	}
}

// bad sends packets, with three descriptors in the last, and expects to be hung
// up on.
func bad(t *testing.T, path string, packets [][]byte) {
	t.Helper()
	uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, uc)
	sent := files(t, 3)
	defer closing(t, Set{Files: sent})
	err = withFDs(sent, func(fds []int) error {
		for i, p := range packets {
			var oob []byte
			if i == len(packets)-1 {
				oob = unix.UnixRights(fds...)
			}
			if _, _, err := uc.WriteMsgUnix(p, oob, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, maxMessage); ; {
		if _, err := uc.Read(b); err != nil {
			break
		}
	}
}

func TestOtherUser(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "keeper.sock")
	startServer(t, path)
	for _, name := range []string{filepath.Dir(dir), dir, path} {
		if err := os.Chmod(name, 0o777); err != nil { // or it would not get as far as the check
			t.Fatal(err)
		}
	}
	err := asUser(65534, func() error {
		_, err := newClient(t, path).List(t.Context())
		return err
	})
	if !errors.Is(err, ErrDenied) {
		t.Errorf("client of another user: %v, want ErrDenied", err)
	}
	err = asUser(65534, func() error {
		uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			return err
		}
		defer closing(t, uc)
		m, _, err := (&conn{UnixConn: uc}).receive()
		return errors.Join(err, m.err())
	})
	if !errors.Is(err, ErrDenied) {
		t.Errorf("server to another user: %v, want ErrDenied", err)
	}
}

// asUser runs f on a thread of another user, and then ends the thread.
func asUser(uid int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- nil
			return
		}
		done <- f()
	}()
	return <-done
}

func TestManyDescriptorsTakeLittleMemory(t *testing.T) {
	const sets, each = 2000, 10
	if limit, err := RaiseFileLimit(sets*each + 1000); err != nil || limit < sets*each+1000 {
		t.Skipf("limit of open files is %d, %v", limit, err)
	}
	s, c := pair(t)
	f := files(t, 1)[0]
	fs := make([]*os.File, each)
	for i := range fs {
		fs[i] = f
	}
	if _, err := c.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := heap()
	for i := range sets {
		if err := c.Put(t.Context(), Set{Name: fmt.Sprintf("device/%064d", i), Meta: []byte(`{"size":1234567}`), Files: fs}); err != nil {
			t.Fatal(err)
		}
	}
	grown := int64(heap()) - int64(before)
	if _, fds := s.Held(); fds != sets*each {
		t.Errorf("%d descriptors held", fds)
	}
	t.Logf("%d descriptors in %d sets: %d KiB of heap", sets*each, sets, grown>>10)
	if grown > 4<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	entries, err := c.List(t.Context())
	if err != nil || len(entries) != sets {
		t.Errorf("List: %d entries, %v", len(entries), err)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestConcurrent has clients replace, get and drop the same names: what a Get
// returns is always one entire set.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.sock")
	startServer(t, path)
	f := files(t, 4)
	var wg sync.WaitGroup
	for i := range 4 {
		c := newClient(t, path)
		wg.Go(func() {
			for n := range 100 {
				set := Set{Name: "x", Meta: []byte{byte(i)}, Files: []*os.File{f[i], f[i]}}
				if err := c.Put(t.Context(), set); err != nil {
					t.Errorf("Put: %v", err)
				}
				got, err := c.Get(t.Context(), "x")
				if errors.Is(err, ErrNotFound) {
					continue
				}
				if err != nil {
					t.Errorf("Get: %v", err)
					continue
				}
				who := f[got.Meta[0]]
				same(t, got, []*os.File{who, who})
				if n%5 == 0 {
					if err := c.Drop(t.Context(), "x"); err != nil {
						t.Errorf("Drop: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestNoLeak(t *testing.T) {
	before := countOpen(t)
	t.Run("use", func(t *testing.T) {
		s, c := pair(t)
		for range 50 {
			if err := c.Put(t.Context(), Set{Name: "x", Files: files(t, 3)}); err != nil {
				t.Fatal(err)
			}
			got, err := c.Get(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			closing(t, got)
		}
		if _, fds := s.Held(); fds != 3 {
			t.Errorf("%d descriptors held", fds)
		}
	})
	settled(t, before)
}

// TestFull: the server's limit of open files refuses a set and leaks nothing.
func TestFull(t *testing.T) {
	_, c := pair(t)
	f := files(t, 1)
	if _, err := c.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	before := countOpen(t)
	many := make([]*os.File, 100)
	for i := range many {
		many[i] = f[0]
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(before) + 20, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := c.Put(t.Context(), Set{Name: "x", Files: many})
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("Put: %v, want ErrFull", err)
	}
	settled(t, before)
	if err := c.Put(t.Context(), Set{Name: "x", Files: many}); err != nil {
		t.Errorf("Put with room again: %v", err)
	}
}
