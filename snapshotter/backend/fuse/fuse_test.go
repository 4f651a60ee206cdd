package fuse_test

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
)

// keeper is a fuse.Keeper in this process.
type keeper struct {
	mu   sync.Mutex
	kept map[string]kept
}

type kept struct {
	meta []byte
	fds  []int
}

func newKeeper() *keeper { return &keeper{kept: map[string]kept{}} }

func (k *keeper) Put(name string, meta []byte, files ...*os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(name)
	var e kept
	e.meta = meta
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		e.fds = append(e.fds, fd)
	}
	k.kept[name] = e
	return nil
}

func (k *keeper) Get(name string) ([]byte, []*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.kept[name]
	if !ok {
		return nil, nil, fmt.Errorf("nothing is kept as %s: %w", name, fs.ErrNotExist)
	}
	var files []*os.File
	for _, fd := range e.fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, os.NewFile(uintptr(dup), name))
	}
	return e.meta, files, nil
}

func (k *keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(name)
	return nil
}

func (k *keeper) drop(name string) {
	for _, fd := range k.kept[name].fds {
		_ = unix.Close(fd)
	}
	delete(k.kept, name)
}

// keepers are those of nodes, by their directories.
type keepers struct {
	mu sync.Mutex
	by map[string]*keeper
}

func (k *keepers) of(dir string) *keeper {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.by[dir] == nil {
		k.by[dir] = newKeeper()
	}
	return k.by[dir]
}

// logTo sends a log to the test's.
func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func TestSuite(t *testing.T) {
	all := keepers{by: map[string]*keeper{}}
	backendtest.Suite(t, func(t testing.TB, n *backendtest.Node) backend.Backend {
		b, err := fuse.New(fuse.Options{Filler: n.Filler, Keeper: all.of(n.Dir), Log: logTo(t)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}
