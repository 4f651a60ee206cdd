package piecestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// compactSlack is how many records a journal may have beyond two for each
// piece, so that a task with few pieces that is pinned again and again is not
// rewritten every time.
const compactSlack = 256

// compact replaces the journal by the shortest that says the same. mu is held,
// and the task warm.
func (e *entry) compact() error {
	p, err := e.replayed()
	if err != nil {
		return err
	}
	b, crc, err := encodeHeader(e.meta)
	if err != nil {
		return err
	}
	records := 0
	add := func(r record) { b, records = appendRecord(b, crc, r), records+1 }
	for i := range p.held.All() {
		kind := recHeld
		if p.unproven.Has(i) {
			kind = recUnproven
		}
		add(record{kind: kind, index: uint32(i), payload: p.digests[i]}) //nolint:gosec // below task.MaxPieces
	}
	if p.complete {
		add(record{kind: recComplete})
	}
	if !p.pinned.IsZero() {
		add(pinRecord(p.pinned))
	}
	f, err := e.replaceJournal(b)
	if err != nil {
		return fmt.Errorf("rewrite journal of %s: %w", e.meta.ID.Short(), err)
	}
	old := e.journal
	e.journal, e.journalCRC, e.journalSize, e.records = f, crc, int64(len(b)), records
	return old.Close()
}

// replayed reads back what the journal says, which is what its replacement must
// say: the state in memory is changed only after the record is written.
func (e *entry) replayed() (replay, error) {
	p, err := e.readJournal(e.journal)
	if err == nil && p.size != e.journalSize {
		err = fmt.Errorf("%w: %d of %d bytes are readable", errCorrupt, p.size, e.journalSize)
	}
	return p, err
}

// replaceJournal puts a journal of the given content in place. This one is
// synced: all of the task is in it.
func (e *entry) replaceJournal(b []byte) (*os.File, error) {
	next := filepath.Join(e.dir, journalName+".new")
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(next, filepath.Join(e.dir, journalName))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(next))
	}
	return f, nil
}
