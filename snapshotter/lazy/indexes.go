package lazy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// indexes keeps the indexes of layers on disk, by digest.
type indexes struct {
	dir string

	mu sync.Mutex
	// held are those that are in use before a snapshot refers to them, with how
	// often.
	held map[digest.Digest]int
}

const tempPattern = ".new-*"

func openIndexes(dir string) (*indexes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return nil, err
		}
	}
	return &indexes{dir: dir, held: map[digest.Digest]int{}}, nil
}

func (s *indexes) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

// put keeps an index, which is on disk when it returns, and holds it until
// release.
func (s *indexes) put(data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	s.mu.Lock()
	s.held[d]++
	s.mu.Unlock()
	fi, err := os.Stat(s.path(d))
	if err == nil && fi.Size() == int64(len(data)) {
		return d, nil
	}
	if err := writeFile(s.path(d), data); err != nil {
		s.release(d)
		return "", local("keep an index", err)
	}
	return d, nil
}

func (s *indexes) release(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[d]--; s.held[d] <= 0 {
		delete(s.held, d)
	}
}

// get reads an index that was put. It was trusted then.
func (s *indexes) get(d digest.Digest) (*chunkfmt.Index, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(s.path(d))
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != d {
		return nil, fmt.Errorf("index %s is damaged on disk: it has digest %s", d, got)
	}
	return chunkfmt.Decode(data, chunkfmt.Limits{})
}

// retain removes all indexes but those that used reports and those that are held.
func (s *indexes) retain(used func(digest.Digest) bool) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() != nil || s.held[d] > 0 || used(d) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeFile makes a file that appears complete or not at all, and durably.
func writeFile(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
