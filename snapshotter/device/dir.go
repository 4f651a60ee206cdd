package device

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sys/unix"
)

// The files of a device, and the prefixes of what is no device yet or any more.
const (
	tableFile   = "table"
	dataFile    = "data"
	presentFile = "present"
	originsFile = "origins"
	newPrefix   = ".new-"
	trashPrefix = ".trash-"
)

// maxTableBytes bounds a stored table: what one with maxParts chunks needs.
const maxTableBytes = 1 << 30

func (s *Store) dir(key Key) string { return filepath.Join(s.o.Dir, hex.EncodeToString(key[:])) }

// scan finds the devices and clears away what was being made or removed.
func (s *Store) scan() error {
	files, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		if strings.HasPrefix(name, newPrefix) || strings.HasPrefix(name, trashPrefix) {
			if err := os.RemoveAll(filepath.Join(s.o.Dir, name)); err != nil {
				return err
			}
			continue
		}
		var key Key
		if raw, err := hex.DecodeString(name); err != nil || len(raw) != len(key) || strings.ToLower(name) != name {
			continue
		} else {
			copy(key[:], raw)
		}
		if err := s.scanDevice(key); err != nil {
			return err
		}
	}
	return nil
}

// scanDevice notes a device that is on the disk. What is none, as after a power
// cut, is removed.
func (s *Store) scanDevice(key Key) error {
	info, used, err := peekTable(filepath.Join(s.dir(key), tableFile), key)
	if err != nil {
		s.o.Log.Warn("remove a device without a table", "key", key.String(), "error", err)
		return s.trash(key)
	}
	e := &entry{key: key}
	e.info.Store(&info)
	e.used.Store(used)
	e.bytes.Store(allocated(s.dir(key)))
	s.entries[key] = e
	return nil
}

// peekTable reads the front of a table. The rest is checked when it is loaded.
func peekTable(path string, key Key) (info tableInfo, used int64, err error) {
	f, err := os.Open(path) // #nosec G304 -- below the store's directory
	if err != nil {
		return info, 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return info, 0, err
	}
	head := make([]byte, 128)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return info, 0, err
	}
	head, ok := bytes.CutPrefix(head[:n], []byte(tableMagic))
	r := tableReader{p: head}
	if !ok || r.digest() != key {
		return info, 0, invalid("not the table of this device")
	}
	info.blob = r.digest()
	r.byte()
	r.atMost(1 << 62)
	info.size = r.atMost(chunkfmt.MaxFileSize)
	return info, st.ModTime().UnixNano(), r.err
}

// allocated returns how many bytes of the disk a device takes, as far as that
// can be seen.
func allocated(dir string) int64 {
	total := int64(0)
	for _, name := range []string{tableFile, dataFile, presentFile, originsFile} {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, name), &st) == nil {
			total += st.Blocks * 512
		}
	}
	return total
}

// openDevice opens the files of a device; with a table it makes those that are
// missing. e.mu is held.
func (s *Store) openDevice(e *entry, table *Table) (*Device, error) {
	dir, fresh := s.dir(e.key), false
	if table == nil {
		var err error
		if table, err = s.loadTable(e.key); err != nil {
			return nil, err
		}
	} else {
		var err error
		if fresh, err = s.ensureTable(table); err != nil {
			return nil, err
		}
	}
	f, changed, err := s.openData(dir, table.Blob.DeviceSize)
	if err != nil {
		return nil, err
	}
	d := &Device{
		s: s, e: e, table: table, fresh: fresh || changed, writer: f,
		present: make([]atomic.Uint64, (len(table.Blob.Groups)+63)/64),
		done:    make(chan struct{}),
		ledger:  presence{path: filepath.Join(dir, presentFile), key: e.key, groups: len(table.Blob.Groups), step: s.o.step},
	}
	if d.ledger.file, err = identityOf(f); err == nil {
		var found bool
		if found, err = d.ledger.load(); err == nil {
			d.fresh = d.fresh || !found
			err = d.origins.load(filepath.Join(dir, originsFile))
		}
	}
	if err != nil {
		f.Close() //nolint:errcheck // the other error counts
		return nil, err
	}
	d.start()
	if d.fresh {
		s.wake()
	}
	return d, nil
}

// loadTable reads the stored table of a device. One that is damaged is as good
// as none: without it nobody can say what the data are.
func (s *Store) loadTable(key Key) (*Table, error) {
	path := filepath.Join(s.dir(key), tableFile)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxTableBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes", fs.ErrNotExist, path, st.Size())
	}
	p, err := os.ReadFile(path) // #nosec G304 -- below the store's directory
	if err != nil {
		return nil, err
	}
	t, err := DecodeTable(p)
	if err == nil && t.Key != key {
		err = invalid("it is that of device %s", t.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", fs.ErrNotExist, path, err)
	}
	return t, nil
}

// ensureTable makes the directory of a device, or puts a table in the place of a
// damaged one, and reports whether it did.
func (s *Store) ensureTable(t *Table) (bool, error) {
	dir, encoded := s.dir(t.Key), t.Encode()
	path := filepath.Join(dir, tableFile)
	stored, err := os.ReadFile(path) // #nosec G304 -- below the store's directory
	switch {
	case err == nil && bytes.Equal(stored, encoded):
		return false, nil
	case err == nil:
		return true, replaceFile(path, encoded)
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := s.trash(t.Key); err != nil {
		return false, err
	}
	return true, s.create(t, encoded)
}

// create makes the directory of a device.
func (s *Store) create(t *Table, encoded []byte) error {
	tmp, err := os.MkdirTemp(s.o.Dir, newPrefix)
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(tmp, tableFile), encoded, 0o600)
	if err == nil {
		err = createData(filepath.Join(tmp, dataFile), t.Blob.DeviceSize)
	}
	if err == nil {
		// Its blocks are there from the start: recording what is present must not
		// need space that data have used up.
		p := presence{groups: len(t.Blob.Groups)}
		err = os.WriteFile(filepath.Join(tmp, presentFile), make([]byte, p.sumOffset(p.groups)), 0o600)
	}
	if err == nil {
		err = s.o.step("rename", tmp)
	}
	if err == nil {
		err = os.Rename(tmp, s.dir(t.Key))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return nil
}

func createData(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- below the store's directory
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close() //nolint:errcheck // the other error counts
		return err
	}
	return f.Close()
}

// openData opens the data file. One that is missing or has another length was
// tampered with: it becomes an empty one, and reports so.
func (s *Store) openData(dir string, size int64) (*os.File, bool, error) {
	path := filepath.Join(dir, dataFile)
	f, err := os.OpenFile(path, os.O_RDWR, 0) // #nosec G304 -- below the store's directory
	if err == nil {
		st, err := f.Stat()
		switch {
		case err == nil && st.Mode().IsRegular() && st.Size() == size:
			return f, false, nil
		case err == nil:
			s.o.Log.Warn("empty a device whose file has another size", "path", path, "size", st.Size(), "want", size)
		}
		f.Close() //nolint:errcheck // not used
		if err != nil {
			return nil, false, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	// First nothing is present, then the bytes go.
	for _, name := range []string{presentFile, dataFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
		if err := syncDir(dir); err != nil {
			return nil, false, err
		}
	}
	if err := createData(path, size); err != nil {
		return nil, false, err
	}
	f, err = os.OpenFile(path, os.O_RDWR, 0) // #nosec G304 -- below the store's directory
	return f, true, err
}

// trash removes the directory of a device.
func (s *Store) trash(key Key) error {
	dir, trash := s.dir(key), filepath.Join(s.o.Dir, trashPrefix+hex.EncodeToString(key[:]))
	if err := os.RemoveAll(trash); err != nil {
		return err
	}
	if err := s.o.step("trash", dir); err != nil {
		return err
	}
	if err := os.Rename(dir, trash); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.RemoveAll(trash)
}

// replaceFile puts a file in the place of another.
func replaceFile(path string, p []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error { return syncPath(dir, unix.Fsync) }

// syncPath opens a file or directory to sync it.
func syncPath(path string, sync func(fd int) error) error {
	f, err := os.Open(path) // #nosec G304 -- below the store's directory
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	if err := sync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
