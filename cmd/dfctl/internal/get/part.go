package get

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A new checkpoint is written after this many bytes. What was written since the
// last one is fetched again after a kill, commonly from this node's store.
const checkpointEvery = 8 << 20

var (
	errBusy  = errors.New("another dfctl get is writing to it")
	errOwner = errors.New("it belongs to another user, or is not a regular file")
)

// part is the file that becomes FILE. It is locked while it is open.
type part struct {
	file  string // FILE
	path  string // of the part file; the checkpoint has ".json" appended
	f     *os.File
	hash  hash.Hash // of what has been written
	size  int64     // bytes written
	saved int64     // bytes in the last checkpoint
	task  string    // "" until resume
}

// checkpoint proves the beginning of a part file.
type checkpoint struct {
	TaskID string `json:"task_id"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // of that many bytes
}

// openPart opens and locks the part file of file. Nothing is read or changed.
func openPart(file string) (*part, error) {
	if st, err := os.Stat(file); err == nil && st.IsDir() {
		return nil, fmt.Errorf("%s is a directory: name a file", file)
	} else if err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: use -O - and redirect standard output to it", file)
	}
	dir, base := filepath.Split(file)
	p := &part{file: file, path: filepath.Join(dir, "."+base+".dfget-part"), hash: sha256.New()}
	for {
		f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o666)
		if err != nil {
			return nil, fmt.Errorf("create the part file: %w", err)
		}
		current, err := p.lock(f)
		if err == nil && current {
			p.f = f
			return p, nil
		}
		if closeErr := f.Close(); err != nil || closeErr != nil {
			return nil, errors.Join(err, closeErr)
		}
	}
}

// lock takes the lock and says whether the path still names f: another run
// may have renamed or removed it between opening and locking.
func (p *part) lock(f *os.File) (current bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errBusy
		}
		return false, fmt.Errorf("lock %s: %w", p.path, err)
	}
	st, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the part file: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.Mode().IsRegular() || !ok || int(sys.Uid) != os.Geteuid() {
		return false, fmt.Errorf("use %s: %w", p.path, errOwner)
	}
	now, err := os.Lstat(p.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look at the part file: %w", err)
	}
	return os.SameFile(st, now), nil
}

// resume keeps what is proven to be the beginning of the given task, which is
// length bytes long, and cuts off the rest. It calls before once with the
// number of bytes that must be read for the proof, if there are any.
func (p *part) resume(ctx context.Context, taskID string, length int64, before func(int64)) error {
	if c, ok := p.readCheckpoint(); ok && c.TaskID == taskID && c.Bytes > 0 && c.Bytes <= length {
		before(c.Bytes)
		n, err := io.Copy(p.hash, io.LimitReader(readerFunc(func(b []byte) (int, error) {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			return p.f.Read(b)
		}), c.Bytes))
		if err != nil {
			return fmt.Errorf("check the part file: %w", err)
		}
		if n == c.Bytes && p.sum() == c.SHA256 {
			p.size, p.saved = n, n
		} else {
			p.hash.Reset()
		}
	}
	p.task = taskID
	if err := p.f.Truncate(p.size); err != nil {
		return fmt.Errorf("cut the part file: %w", err)
	}
	if _, err := p.f.Seek(p.size, io.SeekStart); err != nil {
		return fmt.Errorf("position in the part file: %w", err)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// Write appends to the part file.
func (p *part) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.hash.Write(b[:n])
	p.size += int64(n)
	if err != nil {
		return n, err
	}
	if p.size-p.saved >= checkpointEvery {
		err = p.writeCheckpoint()
	}
	return n, err
}

// sum returns the SHA-256 of what has been written.
func (p *part) sum() string { return hex.EncodeToString(p.hash.Sum(nil)) }

// commit makes the part file FILE.
func (p *part) commit() error {
	if err := p.f.Sync(); err != nil {
		return fmt.Errorf("sync the content: %w", err)
	}
	if err := os.Rename(p.path, p.file); err != nil {
		return fmt.Errorf("give the content its name: %w", err)
	}
	if err := syncDir(filepath.Dir(p.file)); err != nil {
		return err
	}
	if err := os.Remove(p.checkpointPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	return p.f.Close()
}

// keep closes the part file for a later run and says whether there is anything
// to continue. Without that, nothing is left behind.
func (p *part) keep() (bool, error) {
	if p.task == "" {
		// Another task's part, or one not looked at: leave it as it is.
		st, err := p.f.Stat()
		if err != nil || st.Size() > 0 {
			return false, errors.Join(err, p.f.Close())
		}
	}
	if p.size == 0 {
		return false, p.discard()
	}
	return true, errors.Join(p.writeCheckpoint(), p.f.Close())
}

// discard removes the part file.
func (p *part) discard() error {
	var errs []error
	for _, path := range []string{p.checkpointPath(), p.path} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, p.f.Close())...)
}

func (p *part) checkpointPath() string { return p.path + ".json" }

// readCheckpoint returns false for a checkpoint that is missing or damaged:
// the download starts over.
func (p *part) readCheckpoint() (checkpoint, bool) {
	var c checkpoint
	data, err := os.ReadFile(p.checkpointPath())
	if err != nil || json.Unmarshal(data, &c) != nil {
		return checkpoint{}, false
	}
	return c, true
}

// writeCheckpoint replaces the checkpoint. It is not synced: it is believed
// only if the part file agrees.
func (p *part) writeCheckpoint() error {
	data, err := json.Marshal(checkpoint{TaskID: p.task, Bytes: p.size, SHA256: p.sum()})
	if err != nil {
		return fmt.Errorf("encode the checkpoint: %w", err)
	}
	next := p.checkpointPath() + ".new"
	// Removed and created anew, so that a link planted there is not followed.
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace the checkpoint: %w", err)
	}
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create the checkpoint: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	if err := os.Rename(next, p.checkpointPath()); err != nil {
		return fmt.Errorf("replace the checkpoint: %w", err)
	}
	p.saved = p.size
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the directory to sync it: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync the directory: %w", err)
	}
	return nil
}
