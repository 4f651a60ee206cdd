package fanotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// groupFlags: without FAN_UNLIMITED_QUEUE the kernel lets readers pass, onto
	// zeros, once 16384 of them wait.
	groupFlags = unix.FAN_CLASS_PRE_CONTENT | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK |
		unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS
	// eventFlags are those of the descriptors that come with events.
	eventFlags = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC | unix.O_NOATIME

	lockPoll = 10 * time.Millisecond
)

// Options of a Watch. The zero value works.
type Options struct {
	// Log gets what Serve goes on after. Default: nowhere.
	Log *slog.Logger
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// Watch is a fanotify group for one file, with its ring. Its methods may be
// called from several goroutines at once, except Close.
type Watch struct {
	log     *slog.Logger
	group   *os.File
	ring    *ring
	serving atomic.Bool
}

// New makes a group that watches nothing yet. Groups are limited: see
// RaiseLimits.
func New(o Options) (*Watch, error) {
	fd, err := unix.FanotifyInit(groupFlags, eventFlags)
	if err != nil {
		return nil, initError(err)
	}
	w := &Watch{log: o.log(), group: os.NewFile(uintptr(fd), "fanotify-group")}
	if w.ring, err = newRing(); err != nil {
		return nil, errors.Join(err, w.group.Close())
	}
	if err := w.ring.tryLock(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Restore continues a Watch of an earlier process, or one that this process has
// closed, from what Files returned there. It waits until that process has ended
// and returns an error that wraps ErrBusy if ctx ends before. The error wraps
// ErrCorrupt if the files cannot be a Watch's. The files belong to the Watch,
// or, after an error, still to the caller.
func Restore(ctx context.Context, group, ringFile *os.File, o Options) (*Watch, error) {
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	r, err := openRing(ringFile)
	if err != nil {
		return nil, err
	}
	if err := waitLock(ctx, r); err != nil {
		return nil, errors.Join(err, r.unmap())
	}
	w := &Watch{log: o.log(), group: group, ring: r}
	for i := 1; i < slots; i++ {
		if _, err := parse(r.slot(i)); err != nil {
			return nil, errors.Join(fmt.Errorf("read slot %d of fanotify ring: %w", i, err), r.unmap())
		}
	}
	return w, nil
}

// waitLock polls: a waiting flock(2) does not end with ctx.
func waitLock(ctx context.Context, r *ring) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := r.tryLock()
		if !errors.Is(err, ErrBusy) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// checkGroup also makes sure that reading from group does not block a thread.
func checkGroup(group *os.File) error {
	target := ""
	err := control(group, func(fd int) (err error) {
		target, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		return err
	})
	if err != nil {
		return fmt.Errorf("look at fanotify group: %w", err)
	}
	if target != "anon_inode:[fanotify]" {
		return fmt.Errorf("a fanotify group is %q: %w", target, ErrCorrupt)
	}
	flags, err := fcntl(group, unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("read flags of fanotify group: %w", err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		return fmt.Errorf("a fanotify group blocks: %w", ErrCorrupt)
	}
	return nil
}

// Files returns the group and the ring, for a keeper and then Restore. They
// belong to the Watch.
func (w *Watch) Files() []*os.File { return []*os.File{w.group, w.ring.file} }

// Mark begins to watch f, a regular file: every later open of it asks before it
// reads; f itself and what else is open already never does. Marking a file
// again does nothing.
func (w *Watch) Mark(f *os.File) error {
	return w.mark(f, unix.FAN_MARK_ADD)
}

// Unmark ends the watching: readers go on without events. Those that wait
// already still need an answer. A file opened while it was marked asks again if
// it is marked again; one opened in between never does.
func (w *Watch) Unmark() error {
	err := control(w.group, func(fd int) error {
		return unix.FanotifyMark(fd, unix.FAN_MARK_FLUSH, 0, unix.AT_FDCWD, "")
	})
	if err != nil {
		return fmt.Errorf("remove fanotify marks: %w", err)
	}
	return nil
}

func (w *Watch) mark(f *os.File, how uint) error {
	return control(w.group, func(group int) error {
		err := control(f, func(fd int) error {
			return unix.FanotifyMark(group, how, unix.FAN_PRE_ACCESS, fd, "")
		})
		if err != nil {
			return markError(f.Name(), err)
		}
		return nil
	})
}

// Marked says whether the group watches f. After Restore it tells whether the
// group is the one that guards this file.
func (w *Watch) Marked(f *os.File) (bool, error) {
	info, err := w.info()
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := control(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return false, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	// The kernel prints its own form of the device number.
	dev := uint64(unix.Major(st.Dev))<<20 | uint64(unix.Minor(st.Dev))
	return hasMark(info, st.Ino, dev), nil
}

func (w *Watch) info() (string, error) {
	var info []byte
	err := control(w.group, func(fd int) (err error) {
		info, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read marks of fanotify group: %w", err)
	}
	return string(info), nil
}

// hasMark reads the lines that proc(5) has for fanotify groups.
func hasMark(info string, ino, dev uint64) bool {
	for line := range strings.Lines(info) {
		var gotIno, gotDev, flags, mask uint64
		n, err := fmt.Sscanf(line, "fanotify ino:%x sdev:%x mflags:%x mask:%x", &gotIno, &gotDev, &flags, &mask)
		if err == nil && n == 4 && gotIno == ino && gotDev == dev && mask&unix.FAN_PRE_ACCESS != 0 {
			return true
		}
	}
	return false
}

// Pending returns how many events the ring has: those being handled, or, before
// Serve, those that an earlier process left.
func (w *Watch) Pending() int {
	n := 0
	for i := 1; i < slots; i++ {
		if w.ring.used(i) {
			n++
		}
	}
	return n
}

// Close gives back what the Watch has in this process. Serve must have
// returned. If no keeper holds the group, readers that wait go on, onto zeros.
func (w *Watch) Close() error {
	return errors.Join(w.group.Close(), w.ring.unmap(), w.ring.file.Close())
}
