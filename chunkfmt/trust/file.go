package trust

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// exposed are the permissions that a private key must not have: reading by
// others, and writing by anybody but the owner. A group may read, which is how
// Kubernetes mounts secrets.
const exposed = 0o037

// DefaultKeyFile returns the file of a user's private key:
// damselfly/key.pem in $XDG_CONFIG_HOME, or in $HOME/.config.
func DefaultKeyFile(getenv func(string) string) (string, error) {
	dir := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) { // relative ones are invalid and are to be ignored
		home := getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", errors.New("find the key: neither HOME nor XDG_CONFIG_HOME is set: name the key's file")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "damselfly", "key.pem"), nil
}

// Load reads a private key from a file that nobody else may read. The error is
// fs.ErrNotExist if there is none.
func Load(file string) (*PrivateKey, error) {
	data, err := readFile(file, func(info fs.FileInfo) error {
		if mode := info.Mode().Perm(); mode&exposed != 0 {
			return keyError("others may read or change it (mode %04o); run: chmod 600 %s", mode, file)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	key, err := ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("read private key %s: %w", file, err)
	}
	return key, nil
}

// Create makes a new private key in a file that only the user may read. The
// directory is made if need be. The file appears complete or not at all; one
// that exists is left alone, and the error is fs.ErrExist.
func Create(file string) (*PrivateKey, error) {
	key, err := Generate()
	if err != nil {
		return nil, err
	}
	data, err := key.MarshalPEM()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	if err := WriteNew(file, data, 0o600); err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return key, nil
}

// LoadOrCreate returns the private key in a file, and makes it if there is no
// such file; created says which. Of several callers at the same time one makes
// the key and all return it.
func LoadOrCreate(file string) (key *PrivateKey, created bool, err error) {
	if key, err = Load(file); !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	if key, err = Create(file); errors.Is(err, fs.ErrExist) {
		key, err = Load(file)
		return key, false, err
	}
	return key, err == nil, err
}

// WriteNew writes a file that must not exist yet, through a temporary one and
// durably. The error is fs.ErrExist if it does.
func WriteNew(file string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, ".damselfly-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := writeSynced(f, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	// Unlike a rename, a link fails if the name is taken.
	if err := os.Link(f.Name(), file); err != nil {
		var link *os.LinkError
		if errors.As(err, &link) {
			err = link.Err
		}
		return fmt.Errorf("write %s: %w", file, err)
	}
	return syncDir(dir)
}

func writeSynced(f *os.File, data []byte, mode fs.FileMode) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}

// LoadPolicy makes the policy that a YAML file describes (ParseSettings).
// Names of key files in it are relative to its directory.
func LoadPolicy(file string) (*Policy, error) {
	data, err := readFile(file, nil)
	if err != nil {
		return nil, fmt.Errorf("read trust policy: %w", err)
	}
	s, err := ParseSettings(file, data)
	if err != nil {
		return nil, fmt.Errorf("read trust policy: %w", err)
	}
	p, err := s.Policy(Files(filepath.Dir(file)))
	if err != nil {
		return nil, fmt.Errorf("read trust policy %s: %w", file, err)
	}
	return p, nil
}

// Files returns the function by which Settings.Policy reads key files from the
// disk. Names are relative to dir. A name with * in its last element may stand
// for no file at all, so that a directory for keys can start empty.
func Files(dir string) func(name string) (map[string][]byte, error) {
	return func(name string) (map[string][]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		names := []string{name}
		if strings.Contains(filepath.Base(name), "*") {
			var err error
			if names, err = matching(filepath.Dir(name), filepath.Base(name)); err != nil {
				return nil, err
			}
		}
		contents := make(map[string][]byte, len(names))
		for _, n := range names {
			data, err := readFile(n, nil)
			if err != nil {
				return nil, err
			}
			contents[n] = data
		}
		return contents, nil
	}
}

// matching lists the files in a directory that have a name of the form. It
// differs from filepath.Glob in that a directory that cannot be read is an
// error: its keys would be missing unseen.
func matching(dir, form string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		ok, err := filepath.Match(form, e.Name())
		if err != nil {
			return nil, fmt.Errorf("file name %q: %w", form, err)
		}
		// Hidden files are what editors and Kubernetes keep beside the others.
		if ok && !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	if len(names) > MaxKeys {
		return nil, fmt.Errorf("%s has %d key files, at most %d", dir, len(names), MaxKeys)
	}
	return names, nil
}

// readFile reads a regular file of at most MaxFile bytes.
func readFile(name string, check func(fs.FileInfo) error) ([]byte, error) {
	// A pipe must be refused, not waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if check != nil {
		if err := check(info); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", name, MaxFile)
	}
	return data, nil
}
