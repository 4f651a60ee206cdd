package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// node carries out the three commands on one root.
type node struct {
	disk    *disk
	version func(context.Context) (string, error)
	client  *http.Client
	now     func() time.Time
}

// step is one file of a plan with everything decided.
type step struct {
	change
	cur   file
	base  base
	data  []byte
	part  part
	write bool // the file's bytes change
	// foreign says that the file already names the mirror without our doing.
	foreign bool
}

// undo is one recorded file to be put back.
type undo struct {
	rec  record
	cur  file
	base base
	// keep lists other runtimes that still use the file; it then stays.
	keep []string
}

// work is all that a setup is going to do.
type work struct {
	state *state
	plan  *plan
	steps []step
	stale []undo
}

// done says that nothing is left to do, not even on record.
func (w *work) done(runtime string) bool {
	for _, s := range w.steps {
		rec := w.state.find(s.path)
		if s.foreign {
			continue
		}
		if s.write || rec == nil || rec.Previous != "" || !slices.Contains(rec.Runtimes, runtime) {
			return false
		}
	}
	return len(w.stale) == 0
}

// setup puts req in force. Everything that can be refused is refused before
// the first change.
func (n *node) setup(ctx context.Context, req request) (*Report, error) {
	// The first look takes no lock: a refusal must leave nothing behind, not
	// even a lock's directory.
	w, err := n.prepare(ctx, req)
	if err != nil {
		return nil, err
	}
	if !req.dryRun && !w.done(req.runtime) {
		if w, err = n.setupLocked(ctx, req); err != nil {
			return nil, err
		}
	}
	return n.setupReport(ctx, req, w), nil
}

func (n *node) setupLocked(ctx context.Context, req request) (w *work, err error) {
	dirs := n.disk.missingDirs(statePath)
	if err := n.disk.mkdirs(dirs, 0o755); err != nil {
		return nil, err
	}
	release, err := lock(n.disk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, n.tidy(err, dirs), release()) }()
	if w, err = n.prepare(ctx, req); err != nil {
		return nil, err
	}
	if len(w.state.CreatedDirs) == 0 {
		w.state.CreatedDirs = dirs
	}
	return w, n.apply(req, w)
}

// tidy deletes the directories made for the state when setup failed before it
// had anything to record in them.
func (n *node) tidy(failure error, dirs []string) error {
	if failure == nil {
		return nil
	}
	if f, err := n.disk.read(statePath); err != nil || f.Exists {
		return nil //nolint:nilerr // the failure is reported; whatever is there, remove deals with it
	}
	return dropState(n.disk, &state{CreatedDirs: dirs})
}

// prepare decides what to do from the files as they are now.
func (n *node) prepare(ctx context.Context, req request) (*work, error) {
	st, err := loadState(n.disk)
	if err != nil {
		return nil, err
	}
	pl, err := (&planner{disk: n.disk, state: st, version: n.version, req: req}).plan(ctx)
	if err != nil {
		return nil, err
	}
	w := &work{state: st, plan: pl}
	var errs []error
	planned := map[string]bool{}
	for _, c := range pl.changes {
		s, err := n.prepareStep(st, c, req.force)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		w.steps = append(w.steps, s)
		planned[c.path] = !s.foreign
	}
	for _, r := range st.Files {
		if planned[r.Path] || !slices.Contains(r.Runtimes, req.runtime) {
			continue
		}
		u, err := n.prepareUndo(r, []string{req.runtime}, req.force)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		w.stale = append(w.stale, u)
	}
	return w, errors.Join(errs...)
}

func (n *node) prepareStep(st *state, c change, force bool) (step, error) {
	cur, err := n.disk.read(c.path)
	if err != nil {
		return step{}, err
	}
	s := step{change: c, cur: cur, base: base{file: cur, original: true}}
	if r := st.find(c.path); r != nil {
		if s.base, err = fileBase(n.disk, r, cur, force); err != nil {
			return step{}, err
		}
	}
	if s.data, s.part, err = c.edit(s.base.file); err != nil {
		return step{}, fmt.Errorf("%s: %w", n.disk.abs(c.path), err)
	}
	s.foreign = s.base.Exists && bytes.Equal(s.data, s.base.Data)
	s.write = !s.foreign && (!cur.Exists || !bytes.Equal(s.data, cur.Data))
	return s, nil
}

// apply records what is going to happen, then makes it happen.
func (n *node) apply(req request, w *work) error {
	for _, s := range w.steps {
		if s.foreign {
			continue
		}
		if err := n.intend(w.state, s, req); err != nil {
			return err
		}
	}
	if err := saveState(n.disk, w.state); err != nil {
		return err
	}
	for _, s := range w.steps {
		if !s.write {
			continue
		}
		if err := n.disk.mkdirs(w.state.find(s.path).CreatedDirs, 0o755); err != nil {
			return err
		}
		a := attr{Mode: 0o644, UID: -1}
		if s.cur.Exists {
			a = attr{Mode: s.cur.Attr.Mode, UID: s.cur.Attr.UID, GID: s.cur.Attr.GID}
		}
		if err := n.disk.write(s.path, s.data, a); err != nil {
			return err
		}
	}
	for _, u := range w.stale {
		if err := n.undo(w.state, u); err != nil {
			return err
		}
	}
	return n.settle(w.state)
}

// intend saves the original of a file and puts what is to be done on record.
func (n *node) intend(st *state, s step, req request) error {
	r := record{
		Path: s.path, Existed: s.base.Exists, Attr: s.base.Attr,
		Written: digest(s.data), WrittenAt: n.now().UTC(), Part: s.part,
		Registries: s.registries, Mirror: req.mirror, Restart: s.restart,
		Runtimes: []string{req.runtime}, CreatedDirs: st.ownDirs(s.path, n.disk.missingDirs(s.path)),
	}
	if s.base.Exists {
		r.Original = digest(s.base.Data)
		if err := n.disk.mkdirs([]string{backupDir}, 0o700); err != nil {
			return err
		}
		if err := saveBackup(n.disk, s.base.Data); err != nil {
			return err
		}
	}
	if old := st.find(s.path); old != nil {
		r.Runtimes = append(r.Runtimes, old.Runtimes...)
		slices.Sort(r.Runtimes)
		r.Runtimes = slices.Compact(r.Runtimes)
		if r.Restart == "" {
			r.Restart = old.Restart
		}
		if !s.write {
			r.WrittenAt = old.WrittenAt
		} else if s.cur.Exists {
			r.Previous = digest(s.cur.Data)
		}
	}
	st.put(r)
	return nil
}

// settle closes a change: intents become facts, backups nobody needs go, and
// an empty record goes altogether.
func (n *node) settle(st *state) error {
	if len(st.Files) == 0 {
		return dropState(n.disk, st)
	}
	for i := range st.Files {
		st.Files[i].Previous = ""
	}
	if err := saveState(n.disk, st); err != nil {
		return err
	}
	return dropBackups(n.disk, st)
}
