package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// attr is what a rename would lose of the file it replaces.
type attr struct {
	Mode    fs.FileMode `json:"mode"`
	UID     int         `json:"uid"`
	GID     int         `json:"gid"`
	ModTime time.Time   `json:"mtime"`
}

// file is one file as it was read. The zero value is a file that is absent.
type file struct {
	Exists bool
	Data   []byte
	Attr   attr
}

// errNotRegular says that a configuration path is something other than a
// file, most often a link into a tree that another tool manages.
var errNotRegular = errors.New("not a regular file; change it where it is managed")

// disk reads below root and changes files so that a crash leaves the old or
// the new content.
type disk struct {
	root string
	// step is called before every change with its name; an error stops there
	// as a crash would. Tests set it; nil does nothing.
	step func(op, path string) error
}

// abs turns a path as the runtime sees it into one on this machine.
func (d *disk) abs(path string) string { return filepath.Join(d.root, path) }

func (d *disk) before(op, path string) error {
	if d.step == nil {
		return nil
	}
	return d.step(op, path)
}

// read returns the file at path; an absent one is no error.
func (d *disk) read(path string) (file, error) {
	name := d.abs(path)
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, nil
	}
	if err != nil {
		return file{}, fmt.Errorf("look at %s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return file{}, fmt.Errorf("%s is a %s: %w", name, info.Mode().Type(), errNotRegular)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return file{}, fmt.Errorf("read configuration: %w", err)
	}
	f := file{Exists: true, Data: data, Attr: attr{Mode: modeBits(info.Mode()), ModTime: info.ModTime(), UID: -1, GID: -1}}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.Attr.UID, f.Attr.GID = int(st.Uid), int(st.Gid)
	}
	return f, nil
}

func modeBits(m fs.FileMode) fs.FileMode {
	return m & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// tempName is fixed so that a later run can clear what a crash left. It ends
// in none of the suffixes that runtimes load.
func tempName(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".damselfly-tmp")
}

// write replaces the file at path. A zero a.ModTime leaves the time alone and
// a negative owner leaves the owner alone.
func (d *disk) write(path string, data []byte, a attr) error {
	name := d.abs(path)
	tmp := tempName(name)
	if err := d.writeTemp(tmp, data, a); err != nil {
		d.discard(tmp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := d.before("rename", name); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		d.discard(tmp)
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return d.syncDir(filepath.Dir(name))
}

func (d *disk) writeTemp(tmp string, data []byte, a attr) (err error) {
	if err := d.before("create", tmp); err != nil {
		return err
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Half the content first lets a test stop in the middle of a write.
	for _, half := range [][]byte{data[:len(data)/2], data[len(data)/2:]} {
		if err := d.before("write", tmp); err != nil {
			return err
		}
		if _, err := f.Write(half); err != nil {
			return err
		}
	}
	if a.UID >= 0 {
		if err := f.Chown(a.UID, a.GID); err != nil {
			return err
		}
	}
	if err := f.Chmod(a.Mode); err != nil {
		return err
	}
	if !a.ModTime.IsZero() {
		if err := os.Chtimes(tmp, time.Time{}, a.ModTime); err != nil {
			return err
		}
	}
	if err := d.before("sync", tmp); err != nil {
		return err
	}
	return f.Sync()
}

// discard removes a temporary file after a failure. What it cannot remove the
// next run replaces.
func (d *disk) discard(tmp string) {
	if d.before("discard", tmp) == nil {
		_ = os.Remove(tmp) // the write's error is the one to report
	}
}

// remove deletes the file at path and its leftover temporary file; an absent
// file is no error.
func (d *disk) remove(path string) error {
	name := d.abs(path)
	if err := d.clearTemp(path); err != nil {
		return err
	}
	if err := d.before("remove", name); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("delete configuration: %w", err)
	}
	return d.syncDir(filepath.Dir(name))
}

// clearTemp deletes what a crash in the middle of write left beside path.
func (d *disk) clearTemp(path string) error {
	tmp := tempName(d.abs(path))
	if _, err := os.Lstat(tmp); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := d.before("remove", tmp); err != nil {
		return err
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete leftover temporary file: %w", err)
	}
	return nil
}

// missingDirs lists the directories on the way to path's parent that do not
// exist, outermost first.
func (d *disk) missingDirs(path string) []string {
	var missing []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(d.abs(dir)); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		missing = append([]string{dir}, missing...)
	}
	return missing
}

// mkdirs creates the directories in order.
func (d *disk) mkdirs(dirs []string, mode fs.FileMode) error {
	for _, dir := range dirs {
		name := d.abs(dir)
		if err := d.before("mkdir", name); err != nil {
			return err
		}
		if err := os.Mkdir(name, mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create directory: %w", err)
		}
		if err := d.syncDir(filepath.Dir(name)); err != nil {
			return err
		}
	}
	return nil
}

// rmdirs deletes the directories that are empty, innermost first. One that
// somebody has put something into stays.
func (d *disk) rmdirs(dirs []string) error {
	for i := len(dirs) - 1; i >= 0; i-- {
		name := d.abs(dirs[i])
		if err := d.before("rmdir", name); err != nil {
			return err
		}
		err := syscall.Rmdir(name)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, syscall.ENOTEMPTY), errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR):
			return nil
		default:
			return fmt.Errorf("delete directory %s: %w", name, err)
		}
	}
	return nil
}

func (d *disk) syncDir(name string) error {
	if err := d.before("syncdir", name); err != nil {
		return err
	}
	dir, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("open directory to sync it: %w", err)
	}
	if err := dir.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync directory: %w", err), dir.Close())
	}
	return dir.Close()
}

// rel turns a path on this machine into one below the root, without the
// leading slash.
func (d *disk) rel(name string) string {
	rel, err := filepath.Rel(d.root, name)
	if err != nil {
		return name
	}
	return rel
}

// readThrough reads a file that is not going to be changed, following links;
// an absent one is empty.
func (d *disk) readThrough(path string) ([]byte, error) {
	data, err := os.ReadFile(d.abs(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return data, nil
}
