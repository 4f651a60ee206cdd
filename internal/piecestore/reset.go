package piecestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Reset drops all pieces: what was held is worthless, for example because the
// whole content turned out to have another digest. The task goes on with a new
// data file, so that whoever still reads or writes the old one does no harm.
// Writes under way fail with ErrSuperseded.
func (t *Task) Reset() error {
	e := t.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.warm(); err != nil {
		return err
	}
	if err := e.reset(); err != nil {
		return fmt.Errorf("reset %s: %w", e.meta.ID.Short(), err)
	}
	e.notify()
	return nil
}

// adopt goes over to the data file that is in place now. mu is held, and the
// task warm.
func (e *entry) adopt() error {
	data, err := os.OpenFile(filepath.Join(e.dir, dataName), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open data of %s: %w", e.meta.ID.Short(), err)
	}
	seen, err := fingerprintOf(data)
	if err != nil {
		return errors.Join(err, data.Close())
	}
	old := e.data
	e.data, e.seen, e.writing = data, seen, 0
	e.gen++
	e.slots = map[int]*slot{}
	e.checks = map[int]chan struct{}{}
	e.doubt = e.held.Clone()
	return old.Close()
}

// reset journals that nothing is held and goes over to an empty data file. The
// journal comes first: a crash in between leaves bytes that nobody claims. mu
// is held, and the task warm.
func (e *entry) reset() error {
	path := filepath.Join(e.dir, dataName)
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear new data file: %w", err)
	}
	if err := makeData(next, e.meta.Table.Length); err != nil {
		return err
	}
	if err := e.log(record{kind: recReset}); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	e.forget(nil)
	e.complete = false
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("put new data file in place: %w", err)
	}
	return e.adopt()
}
