package device

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

const (
	maxOrigins = 16
	// maxOriginBytes bounds one origin: a host name and a repository.
	maxOriginBytes = 1024
	// maxOriginsFile is where the file is written anew instead of appended to.
	maxOriginsFile = 64 << 10
)

// origins are the repositories that have a device's blob. The file has one per
// line and grows at its end, so that a crash loses new lines only.
type origins struct {
	path  string
	list  []string // newest first
	bytes int      // of the file
	// whole says that the file ends with a whole line.
	whole bool
}

// load reads the file. Lines that are no origins are left out.
func (o *origins) load(path string) error {
	o.path, o.whole = path, true
	p, err := os.ReadFile(path) // #nosec G304 -- below the store's directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	o.bytes = len(p)
	for line := range bytes.Lines(p) {
		origin, whole := strings.CutSuffix(string(line), "\n")
		if o.whole = whole; whole && checkOrigin(origin) == nil {
			o.push(origin)
		}
	}
	return nil
}

func (o *origins) push(origin string) {
	o.list = slices.DeleteFunc(o.list, func(s string) bool { return s == origin })
	o.list = slices.Insert(o.list, 0, origin)
	o.list = o.list[:min(len(o.list), maxOrigins)]
}

// add puts an origin first and reports whether the file changed.
func (o *origins) add(origin string) (bool, error) {
	if err := checkOrigin(origin); err != nil {
		return false, err
	}
	if len(o.list) > 0 && o.list[0] == origin {
		return false, nil
	}
	was := slices.Clone(o.list)
	o.push(origin)
	err := o.write(origin)
	if err != nil {
		o.list = was
		return false, fmt.Errorf("record origin %s: %w", origin, err)
	}
	return true, nil
}

func (o *origins) write(origin string) error {
	line := origin + "\n"
	if !o.whole || o.bytes+len(line) > maxOriginsFile {
		return o.rewrite()
	}
	f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	o.whole = false
	n, err := f.WriteString(line)
	o.bytes += n
	o.whole = err == nil
	return errors.Join(err, f.Close())
}

func (o *origins) rewrite() error {
	var p []byte
	for _, origin := range slices.Backward(o.list) {
		p = append(append(p, origin...), '\n')
	}
	if err := replaceFile(o.path, p); err != nil {
		return err
	}
	o.bytes, o.whole = len(p), true
	return nil
}

func checkOrigin(origin string) error {
	host, repo, _ := strings.Cut(origin, "/")
	if host == "" || repo == "" || len(origin) > maxOriginBytes ||
		strings.ContainsFunc(origin, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Errorf("%.80q is no HOST/REPO", origin)
	}
	return nil
}
