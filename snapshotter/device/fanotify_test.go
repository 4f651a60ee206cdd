package device

import (
	"os"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"golang.org/x/sys/unix"
)

// fanPreAccess asks before the content of a file is used (Linux 6.14).
const fanPreAccess = 0x00100000

// A process that takes over a device which is marked raises no event, for which
// it would wait forever.
func TestMarkedDevice(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	testenv.Kernel(t, 6, 15)
	x, dir := some(t, 3, false), t.TempDir()
	s := openStore(t, Options{Dir: dir, After: still})
	d := get(t, s, x)
	fill(t, d, x, x.groups()[0])
	fd, err := unix.FcntlInt(d.Writer().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	kept := os.NewFile(uintptr(fd), d.Path())
	group, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(group) //nolint:errcheck // the test is over
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, fanPreAccess, unix.AT_FDCWD, d.Path()); err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		takeOver(t, s, x, dir, kept)
	}()
	for {
		select {
		case <-done:
			return
		default:
		}
		poll := []unix.PollFd{{Fd: int32(group), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 10); n > 0 {
			t.Error("an event was raised")
			unix.Close(group) //nolint:errcheck // it lets everybody go on
			<-done
			return
		} else if err != nil && err != unix.EINTR {
			t.Error(err)
			return
		}
	}
}

func takeOver(t *testing.T, s *Store, x *blob, dir string, kept *os.File) {
	if err := s.Close(); err != nil { // what is pending is synced by the old descriptor
		t.Error(err)
	}
	s, err := Open(Options{Dir: dir, After: still})
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close() //nolint:errcheck // what counts is synced before
	s.Recovered()
	d, err := s.Load(x.table.Key)
	if err != nil {
		t.Error(err)
		return
	}
	defer d.Release()
	if err := d.SetWriter(kept); err != nil {
		t.Error(err)
	}
	if !d.Has(x.groups()[0]) {
		t.Error("what was synced is missing")
	}
	for _, g := range x.groups() {
		if err := d.Write(g, x.plain[g]); err != nil {
			t.Error(err)
		}
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil || string(got) != string(x.device) {
		t.Errorf("wrong bytes, %v", err)
	}
	if bad, err := s.Verify(t.Context(), d.Key(), nil); err != nil || bad != nil {
		t.Errorf("bad are %v, %v", bad, err)
	}
}
