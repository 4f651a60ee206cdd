package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// remove takes back what setup did for the given runtimes, or for all when
// there are none given.
func (n *node) remove(runtimes []string, force, dryRun bool) (rep *Report, err error) {
	rep = &Report{Action: "remove", OK: true, DryRun: dryRun}
	if _, err := os.Stat(n.disk.abs(stateDir)); errors.Is(err, fs.ErrNotExist) {
		rep.note("nothing is set up, nothing to remove")
		return rep, nil
	}
	if !dryRun {
		release, err := lock(n.disk)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	st, err := loadState(n.disk)
	if err != nil {
		return nil, err
	}
	undos, err := n.prepareUndos(st, runtimes, force)
	if err != nil {
		return nil, err
	}
	if len(undos) == 0 {
		rep.note("nothing is set up, nothing to remove")
	}
	for _, u := range undos {
		rep.addUndo(n.disk, u)
	}
	if dryRun {
		return rep, nil
	}
	for _, u := range undos {
		if err := n.undo(st, u); err != nil {
			return nil, err
		}
	}
	return rep, n.settle(st)
}

func (n *node) prepareUndos(st *state, runtimes []string, force bool) ([]undo, error) {
	var (
		undos []undo
		errs  []error
	)
	for _, r := range st.Files {
		of := runtimes
		if len(of) == 0 {
			of = r.Runtimes
		}
		if !slices.ContainsFunc(r.Runtimes, func(s string) bool { return slices.Contains(of, s) }) {
			continue
		}
		u, err := n.prepareUndo(r, of, force)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		undos = append(undos, u)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	return undos, nil
}

// prepareUndo decides how a recorded file is put back for the runtimes that
// let go of it.
func (n *node) prepareUndo(r record, runtimes []string, force bool) (undo, error) {
	u := undo{rec: r}
	for _, name := range r.Runtimes {
		if !slices.Contains(runtimes, name) {
			u.keep = append(u.keep, name)
		}
	}
	if len(u.keep) > 0 {
		return u, nil
	}
	var err error
	if u.cur, err = n.disk.read(r.Path); err != nil {
		return undo{}, err
	}
	u.base, err = fileBase(n.disk, &r, u.cur, force)
	return u, err
}

// undo puts a file back and takes it off the record. The record itself is
// saved by settle: until then, doing it again does no harm.
func (n *node) undo(st *state, u undo) error {
	if len(u.keep) > 0 {
		u.rec.Runtimes = u.keep
		st.put(u.rec)
		return nil
	}
	if err := n.disk.clearTemp(u.rec.Path); err != nil {
		return err
	}
	if !u.base.Exists {
		if err := n.disk.remove(u.rec.Path); err != nil {
			return err
		}
		if err := n.disk.rmdirs(u.rec.CreatedDirs); err != nil {
			return err
		}
	} else if !u.cur.Exists || !bytes.Equal(u.cur.Data, u.base.Data) {
		if err := n.disk.mkdirs(n.disk.missingDirs(u.rec.Path), 0o755); err != nil {
			return err
		}
		if err := n.disk.write(u.rec.Path, u.base.Data, u.base.Attr); err != nil {
			return err
		}
	}
	st.drop(u.rec.Path)
	return nil
}
