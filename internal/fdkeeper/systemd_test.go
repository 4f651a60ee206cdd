package fdkeeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeSystemd is the part of a service manager that stores descriptors.
type fakeSystemd struct {
	socket string

	mu     sync.Mutex
	stored []Inherited
}

func startSystemd(t *testing.T) *fakeSystemd {
	t.Helper()
	s := &fakeSystemd{socket: filepath.Join(t.TempDir(), "notify")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for b, oob := make([]byte, 4096), make([]byte, 1200); ; {
			n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			fds, _ := rights(oob[:oobn])
			s.handle(string(b[:n]), fds)
		}
	})
	t.Cleanup(func() {
		closing(t, c)
		wg.Wait()
		if err := closeInherited(s.stored); err != nil {
			t.Error(err)
		}
	})
	return s
}

// handle does what service_process_fds_notify of systemd does.
func (s *fakeSystemd) handle(state string, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fields := map[string]string{}
	for line := range strings.Lines(state) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		fields[key] = value
	}
	name := fields["FDNAME"]
	switch {
	case fields["FDSTORE"] == "1" && len(name) <= 255 && fields["FDPOLL"] == "0":
		for _, f := range newFiles(name, fds) {
			s.stored = slices.Insert(s.stored, 0, Inherited{name, f})
		}
		return
	case fields["FDSTOREREMOVE"] == "1":
		s.stored = slices.DeleteFunc(s.stored, func(in Inherited) bool {
			if in.Name == name {
				_ = in.File.Close() // was never written
			}
			return in.Name == name
		})
	}
	closeAll(fds)
}

// pass returns duplicates of what is stored, as the next process gets it.
func (s *fakeSystemd) pass() []Inherited {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Inherited
	for _, in := range s.stored {
		out = append(out, in.dup())
	}
	return out
}

// dup returns another descriptor of the same name.
func (i Inherited) dup() Inherited {
	var f *os.File
	err := withFDs([]*os.File{i.File}, func(fds []int) error {
		f = dupAll(i.Name, fds)[0]
		return nil
	})
	if err != nil {
		panic(err)
	}
	return Inherited{i.Name, f}
}

func (s *fakeSystemd) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stored)
}

func (s *fakeSystemd) env(more ...string) func(string) string {
	vars := map[string]string{"NOTIFY_SOCKET": s.socket}
	for i := 0; i < len(more); i += 2 {
		vars[more[i]] = more[i+1]
	}
	return func(name string) string { return vars[name] }
}

// restarted is what the next process of the unit has.
func (s *fakeSystemd) restarted(t *testing.T) *Systemd {
	t.Helper()
	h, rest, err := NewSystemd(t.Context(), s.pass(), s.env())
	if err != nil || len(rest) != 0 {
		t.Fatalf("NewSystemd: %v, %v", rest, err)
	}
	t.Cleanup(func() { closing(t, h) })
	return h
}

func TestSystemdHandsOver(t *testing.T) {
	fake := startSystemd(t)
	first := fake.restarted(t)
	f := files(t, 5)
	ctx := t.Context()
	for _, s := range []Set{
		{Name: "a.b/c", Stamp: 1, Meta: []byte("meta"), Files: f[:2]},
		{Name: "plain", Stamp: 2, Files: f[2:3]},
		{Name: "a.b/c", Stamp: 3, Meta: []byte("newer"), Files: f[3:]},
		{Name: "a.b/c", Stamp: 3, Meta: []byte("newer"), Files: f[3:]},
		{Name: "gone", Stamp: 4, Files: f[:1]},
	} {
		if err := first.Put(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Put(ctx, Set{Name: "plain", Stamp: 1, Files: f}); !errors.Is(err, ErrStale) {
		t.Errorf("older Put: %v, want ErrStale", err)
	}
	if err := first.Drop(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	if n := fake.count(); n != 4 {
		t.Errorf("%d descriptors stored, want 4", n)
	}
	second := fake.restarted(t)
	for range 2 { // Get does not use it up
		got, err := second.Get(ctx, "a.b/c")
		if err != nil || string(got.Meta) != "newer" || got.Stamp != 3 {
			t.Fatalf("Get: %+v, %v", got, err)
		}
		same(t, got, f[3:])
	}
	list, err := second.List(ctx)
	if err != nil || !slices.Equal(list, []Entry{{"a.b/c", 3, 2}, {"plain", 2, 1}}) {
		t.Errorf("List: %v, %v", list, err)
	}
	if _, err := second.Get(ctx, "gone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of what was dropped: %v", err)
	}
	if err := second.Drop(ctx, "a.b/c"); err != nil {
		t.Fatal(err)
	}
	if n := fake.count(); n != 1 {
		t.Errorf("%d descriptors stored, want 1", n)
	}
}

// TestSystemdLeftovers: sets that were not stored entirely, and older ones, are
// dropped; what is not ours is left alone.
func TestSystemdLeftovers(t *testing.T) {
	fake := startSystemd(t)
	f := files(t, 1)
	store := func(names ...string) {
		for _, name := range names {
			fake.mu.Lock()
			fake.stored = append(fake.stored, Inherited{name, f[0]}.dup())
			fake.mu.Unlock()
		}
	}
	store("http.socket",
		part{"half", 1, 0, 2, 1}.String(),
		part{"no-meta", 1, 4, 1, 1}.String(),
		part{"short-meta", 1, 4000, 1, 0}.String(), part{"short-meta", 1, 4000, 1, 1}.String(),
		part{"twice", 1, 0, 1, 1}.String(), part{"twice", 1, 0, 1, 1}.String(),
		part{"x", 1, 0, 1, 1}.String(), part{"x", 2, 0, 1, 1}.String(),
		part{"index", 1, 0, 1, 1}.String()+"\x00")
	before := countOpen(t)
	s, rest, err := NewSystemd(t.Context(), fake.pass(), fake.env())
	if err != nil {
		t.Fatal(err)
	}
	if len(rest) != 2 || rest[0].Name != "http.socket" {
		t.Errorf("rest: %v", rest)
	}
	list, _ := s.List(t.Context())
	if !slices.Equal(list, []Entry{{"x", 2, 1}}) {
		t.Errorf("List: %v", list)
	}
	if n := fake.count(); n != 3 {
		t.Errorf("%d descriptors stored, want 3", n)
	}
	// Three are open here: two of the rest and x. Seven are not any more there.
	if err := closeInherited(rest); err != nil {
		t.Error(err)
	}
	closing(t, s)
	settled(t, before-7)
}

func TestSystemdLimits(t *testing.T) {
	fake := startSystemd(t)
	s, _, err := NewSystemd(t.Context(), nil, fake.env("FDSTORE", "3"))
	if err != nil {
		t.Fatal(err)
	}
	f := files(t, 3)
	if err := s.Put(t.Context(), Set{Name: "a", Meta: []byte("m"), Files: f}); !errors.Is(err, ErrFull) {
		t.Errorf("Put of four: %v, want ErrFull", err)
	}
	if err := s.Put(t.Context(), Set{Name: "a", Files: f}); err != nil {
		t.Errorf("Put of three: %v", err)
	}
	if _, rest, err := NewSystemd(t.Context(), []Inherited{{Name: "x"}}, func(string) string { return "" }); !errors.Is(err, ErrNoStore) || len(rest) != 1 {
		t.Errorf("without systemd: %v, %v", rest, err)
	}
}

func TestInherit(t *testing.T) {
	if os.Getenv("LISTEN_FDS") != "" {
		in, err := Inherit()
		for _, i := range in {
			flags, _ := unix.FcntlInt(i.File.Fd(), unix.F_GETFD, 0)
			b := make([]byte, 6)
			if _, err := i.File.ReadAt(b, 0); err != nil {
				t.Error(err)
			}
			fmt.Printf("got %q %q %d\n", i.Name, b, flags&unix.FD_CLOEXEC)
		}
		fmt.Printf("error %v, variable %q\n", err, os.Getenv("LISTEN_FDS"))
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=TestInherit`, exe)
	cmd.ExtraFiles = files(t, 2)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=one:two")
	out, err := cmd.CombinedOutput()
	want := "got \"one\" \"file 0\" 1\ngot \"two\" \"file 1\" 1\nerror <nil>, variable \"\"\n"
	if err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("%v, printed %q, want %q", err, out, want)
	}
	env := func(vars map[string]string) func(string) string { return func(k string) string { return vars[k] } }
	if in, err := inherit(env(map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "1"}), 2, 3); in != nil || err != nil {
		t.Errorf("another process's: %v, %v", in, err)
	}
	if _, err := inherit(env(map[string]string{"LISTEN_PID": "2", "LISTEN_FDS": "x"}), 2, 3); err == nil {
		t.Error("no error for a count that is none")
	}
}
