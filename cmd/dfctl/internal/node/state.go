package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	stateDir     = "/var/lib/damselfly/node"
	statePath    = stateDir + "/state.json"
	backupDir    = stateDir + "/backup"
	stateVersion = 1
)

// state is what setup remembers so that remove can undo it. It is written
// before the files it speaks of change.
type state struct {
	Version int `json:"version"`
	// CreatedDirs are the directories made for the state itself, outermost first.
	CreatedDirs []string `json:"created_dirs,omitempty"`
	Files       []record `json:"files"`
}

// record is one file that setup changed or is about to change.
type record struct {
	Path     string   `json:"path"`
	Runtimes []string `json:"runtimes"`
	// Existed, Original and Attr describe the file before setup; Original is
	// its SHA-256 in hex and the name of its backup, empty if it was absent.
	Existed  bool   `json:"existed"`
	Original string `json:"original_sha256,omitempty"`
	Attr     attr   `json:"original_attr"`
	// Written is the SHA-256 of what setup writes. Previous is the SHA-256 of
	// what an update replaces, set until the update is known to be done.
	Written   string    `json:"written_sha256"`
	Previous  string    `json:"previous_sha256,omitempty"`
	WrittenAt time.Time `json:"written_at"`
	Part      part      `json:"part"`
	// CreatedDirs are the directories made for the file, outermost first.
	CreatedDirs []string `json:"created_dirs,omitempty"`
	Registries  []string `json:"registries,omitempty"`
	Mirror      string   `json:"mirror"`
	Restart     string   `json:"restart,omitempty"`
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (s *state) find(path string) *record {
	for i := range s.Files {
		if s.Files[i].Path == path {
			return &s.Files[i]
		}
	}
	return nil
}

// put replaces the record of r.Path or adds it.
func (s *state) put(r record) {
	if old := s.find(r.Path); old != nil {
		*old = r
		return
	}
	s.Files = append(s.Files, r)
}

func (s *state) drop(path string) {
	s.Files = slices.DeleteFunc(s.Files, func(r record) bool { return r.Path == path })
}

// ownDirs lists the directories above path that go with the last file in them,
// outermost first: those setup made for any file, and the missing ones.
func (s *state) ownDirs(path string, missing []string) []string {
	dirs := slices.Clone(missing)
	for _, r := range s.Files {
		for _, dir := range r.CreatedDirs {
			if within(dir, path) {
				dirs = append(dirs, dir)
			}
		}
	}
	// A directory sorts before what it contains.
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// loadState returns an empty state when nothing is set up.
func loadState(d *disk) (*state, error) {
	f, err := d.read(statePath)
	if err != nil {
		return nil, err
	}
	if !f.Exists {
		return &state{Version: stateVersion}, nil
	}
	dec := json.NewDecoder(bytes.NewReader(f.Data))
	dec.DisallowUnknownFields()
	var s state
	if err := dec.Decode(&s); err != nil {
		return nil, fmt.Errorf("decode %s: %w", d.abs(statePath), err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("%s has version %d, this dfctl knows version %d: use the dfctl that wrote it", d.abs(statePath), s.Version, stateVersion)
	}
	return &s, nil
}

func saveState(d *disk, s *state) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return d.write(statePath, append(data, '\n'), attr{Mode: 0o600, UID: -1})
}

// saveBackup stores an original under its own digest. Originals may hold
// credentials, so only the owner can read the copy.
func saveBackup(d *disk, data []byte) error {
	path := filepath.Join(backupDir, digest(data))
	if f, err := d.read(path); err == nil && f.Exists && bytes.Equal(f.Data, data) {
		return nil
	}
	return d.write(path, data, attr{Mode: 0o600, UID: -1})
}

// loadBackup returns the original of r, checked against its digest.
func loadBackup(d *disk, r *record) ([]byte, error) {
	path := filepath.Join(backupDir, r.Original)
	f, err := d.read(path)
	if err != nil {
		return nil, err
	}
	if !f.Exists {
		return nil, fmt.Errorf("backup of %s is gone: %s", r.Path, d.abs(path))
	}
	if digest(f.Data) != r.Original {
		return nil, fmt.Errorf("backup of %s is damaged: %s does not have the SHA-256 it is named by", r.Path, d.abs(path))
	}
	return f.Data, nil
}

// dropBackups deletes the backups that no record names.
func dropBackups(d *disk, s *state) error {
	entries, err := os.ReadDir(d.abs(backupDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list backups: %w", err)
	}
	for _, e := range entries {
		used := slices.ContainsFunc(s.Files, func(r record) bool { return r.Original == e.Name() })
		if !used {
			if err := d.remove(filepath.Join(backupDir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropState deletes all that the package keeps for itself. The backups go
// first: a state without backups still tells files that are already restored.
func dropState(d *disk, s *state) error {
	if err := dropBackups(d, &state{}); err != nil {
		return err
	}
	if err := d.remove(statePath); err != nil {
		return err
	}
	if err := d.rmdirs([]string{stateDir, backupDir}); err != nil {
		return err
	}
	return d.rmdirs(s.CreatedDirs)
}

// lock keeps a second setup or remove out until release is called. It locks
// the state directory itself, so nothing is left behind.
func lock(d *disk) (release func() error, err error) {
	name := d.abs(stateDir)
	dir, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("another dfctl node command holds %s: %w", name, err), dir.Close())
	}
	held, err := dir.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at state directory: %w", err), dir.Close())
	}
	// A remove that finished between Open and Flock has deleted the directory.
	if now, err := os.Stat(name); err != nil || !os.SameFile(held, now) {
		return nil, errors.Join(fmt.Errorf("%s was removed by another dfctl node command: run this again", name), dir.Close())
	}
	return dir.Close, nil
}
