package lazy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// indexes keeps the indexes of layers on disk, by digest, for as long as
// somebody holds them: a lookup, a lazy layer or a mount.
type indexes struct {
	dir string

	mu   sync.Mutex
	held map[digest.Digest]int
}

const tempPattern = ".new-*"

func openIndexes(dir string) (*indexes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := removeTemporary(dir); err != nil {
		return nil, err
	}
	return &indexes{dir: dir, held: map[digest.Digest]int{}}, nil
}

// removeTemporary removes what writes that a crash has ended have left.
func removeTemporary(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *indexes) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

// put keeps an index, which is on disk when it returns, and holds it.
func (s *indexes) put(data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	s.hold(d)
	// One that is there may be damaged, or not be durable yet.
	err := s.write(d, data)
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		s.release(d)
		return "", local("keep an index", err)
	}
	return d, nil
}

func (s *indexes) write(d digest.Digest, data []byte) error {
	if old, err := os.ReadFile(s.path(d)); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return writeFile(s.path(d), data, true)
}

// hold keeps an index from being removed until as many calls of release.
func (s *indexes) hold(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[d]++
}

// release takes a hold back. With the last the index goes; one that cannot be
// removed goes at the next start.
func (s *indexes) release(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[d]--; s.held[d] > 0 {
		return
	}
	delete(s.held, d)
	_ = os.Remove(s.path(d))
}

// get reads an index that was put. It was trusted then.
func (s *indexes) get(d digest.Digest) (*chunkfmt.Index, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("index %q: %w", d, err)
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

// sweep removes all indexes that nobody holds.
func (s *indexes) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() != nil || s.held[d] > 0 {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeFile makes a file that appears complete or, but for a power cut if it is
// not durable, not at all.
func writeFile(name string, data []byte, durable bool) (err error) {
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
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func syncDir(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- below the data directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
