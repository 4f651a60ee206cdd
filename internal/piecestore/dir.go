package piecestore

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Names below the store's directory. Everything in scratch and trash is of no
// use to a later process.
const (
	tasksDir    = "tasks"
	scratchDir  = "scratch"
	trashDir    = "trash"
	dataName    = "data"
	journalName = "journal"
	// loaders is how many journals are read at a time: enough to keep a disk
	// busy that must seek for each.
	loaders = 8
)

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.opts.Dir}, elem...)...)
}

// taskPath returns the directory of a task. ParseID has vouched for the ID, so
// neither part can be or contain a path separator or "..".
func (s *Store) taskPath(id task.ID) string {
	kind, digits, _ := strings.Cut(string(id), ":")
	return s.path(tasksDir, kind, digits[:2], digits)
}

// makeTask puts a new task on disk. dirMu is held.
func (s *Store) makeTask(m meta) (e *entry, err error) {
	tmp, err := os.MkdirTemp(s.path(scratchDir), "new-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	header, _, err := encodeHeader(m)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, journalName), header, 0o600); err != nil {
		return nil, fmt.Errorf("write journal: %w", err)
	}
	if err := makeData(filepath.Join(tmp, dataName), m.Table.Length); err != nil {
		return nil, err
	}
	dir := s.taskPath(m.ID)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	// Something unreadable may be in the way.
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("clear directory: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("put directory in place: %w", err)
	}
	return newEntry(s, dir, replay{meta: m, held: task.NewSet(m.Table.Count())}), nil
}

// makeData makes a sparse file of the given length.
func makeData(path string, length int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make data file: %w", err)
	}
	if err := errors.Join(f.Truncate(length), f.Close()); err != nil {
		return fmt.Errorf("make data file: %w", err)
	}
	return nil
}

// load brings the directory into shape and reads the tasks in it.
func (s *Store) load() error {
	for _, name := range []string{scratchDir, trashDir} {
		if err := os.RemoveAll(s.path(name)); err != nil {
			return err
		}
	}
	for _, name := range []string{scratchDir, trashDir, tasksDir} {
		if err := os.MkdirAll(s.path(name), 0o700); err != nil {
			return err
		}
	}
	dirs, err := s.taskDirs()
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(loaders)
	for _, dir := range dirs {
		g.Go(func() error { return s.loadTask(dir) })
	}
	return g.Wait()
}

// taskDirs returns the directories that are named like tasks.
func (s *Store) taskDirs() ([]string, error) {
	var dirs []string
	for _, kind := range []string{"sha256", "url"} {
		fans, err := os.ReadDir(s.path(tasksDir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, fan := range fans {
			names, err := os.ReadDir(s.path(tasksDir, kind, fan.Name()))
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				dir := s.path(tasksDir, kind, fan.Name(), name.Name())
				id, err := task.ParseID(kind + ":" + name.Name())
				if err != nil || s.taskPath(id) != dir {
					s.log.Warn("piece store contains something that is no task", "path", dir)
					continue
				}
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs, nil
}

// loadTask reads the task in dir, or removes it when it is damaged. Other
// failures, such as a lack of permission, say nothing about the task and are
// returned.
func (s *Store) loadTask(dir string) error {
	p, accessed, err := s.readTask(dir)
	switch {
	case err == nil:
	case errors.Is(err, errCorrupt), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EIO), errors.Is(err, unix.ENOTDIR):
		s.log.Warn("removing unreadable task from piece store", "path", dir, "error", err)
		return os.RemoveAll(dir)
	default:
		return fmt.Errorf("read task %s: %w", dir, err)
	}
	e := newEntry(s, dir, p)
	e.doubt = p.held.Clone()
	e.last, e.lastSaved = accessed, accessed
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[e.meta.ID] = e
	s.held += e.bytes
	return nil
}

// readTask replays the journal in dir, cuts off what a crash left half written
// and returns the time of the last access as well.
func (s *Store) readTask(dir string) (replay, time.Time, error) {
	path := filepath.Join(dir, journalName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return replay{}, time.Time{}, err
	}
	defer f.Close() //nolint:errcheck // nothing is lost that a later read would miss
	st, err := f.Stat()
	if err != nil {
		return replay{}, time.Time{}, err
	}
	p, err := decodeJournal(bufio.NewReader(f), false)
	if err != nil {
		return replay{}, time.Time{}, err
	}
	if s.taskPath(p.meta.ID) != dir {
		return replay{}, time.Time{}, fmt.Errorf("%w: it is that of %s", errCorrupt, p.meta.ID)
	}
	if p.torn {
		if err := f.Truncate(p.size); err != nil {
			return replay{}, time.Time{}, err
		}
	}
	return p, st.ModTime(), fixData(filepath.Join(dir, dataName), p.meta.Table.Length)
}

// fixData gives the data file the length it had when it was made. What was in
// the part that is new will be found damaged.
func fixData(path string, length int64) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no regular file", errCorrupt, path)
	}
	if st.Size() == length {
		return nil
	}
	return os.Truncate(path, length)
}
