package erofs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/erofs"
)

// keeper is a keeper in this process.
type keeper struct {
	mu   sync.Mutex
	kept map[string][]*os.File
	meta map[string][]byte
	err  error // of Get
	// full is how often Put fails, which forgets the name.
	full int
	// onDrop is called before a name is dropped that is there.
	onDrop func(name string)
}

func (k *keeper) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *keeper) len() int { return len(k.names()) }

func (k *keeper) names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.kept))
}

func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func duplicates(files []*os.File) ([]*os.File, error) {
	var all []*os.File
	for _, f := range files {
		d, err := duplicate(f)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

func (k *keeper) Put(name string, meta []byte, files ...*os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(name)
	if k.full > 0 {
		k.full--
		return errors.New("no room")
	}
	var err error
	k.meta[name] = meta
	k.kept[name], err = duplicates(files)
	return err
}

func (k *keeper) Get(name string) ([]byte, []*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return nil, nil, k.err
	}
	files, ok := k.kept[name]
	if !ok {
		return nil, nil, fmt.Errorf("nothing is kept as %s: %w", name, fs.ErrNotExist)
	}
	files, err := duplicates(files)
	return k.meta[name], files, err
}

func (k *keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept[name] != nil && k.onDrop != nil {
		k.onDrop(name)
	}
	k.drop(name)
	return nil
}

func (k *keeper) drop(name string) {
	for _, f := range k.kept[name] {
		_ = f.Close()
	}
	delete(k.kept, name)
}

func TestSuite(t *testing.T) {
	var mu sync.Mutex
	keepers := map[string]*keeper{}
	backendtest.Suite(t, func(t testing.TB, n *backendtest.Node) backend.Backend {
		mu.Lock()
		defer mu.Unlock()
		if keepers[n.Dir] == nil {
			keepers[n.Dir] = &keeper{kept: map[string][]*os.File{}, meta: map[string][]byte{}}
		}
		return erofs.New(erofs.Options{Filler: n.Filler, Keeper: keepers[n.Dir]})
	})
}

func TestMapFile(t *testing.T) { backendtest.MapFile(t) }
