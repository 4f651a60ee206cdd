package fuse

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// Keeper holds open files for a process that may die.
type Keeper interface {
	// Put keeps duplicates of files under a name, in place of what was kept
	// there.
	Put(name string, meta []byte, files ...*os.File) error
	// Get returns what is kept under a name, and keeps it. The error wraps
	// fs.ErrNotExist if that is nothing.
	Get(name string) (meta []byte, files []*os.File, err error)
	// Drop ends the keeping of a name. It is no error if there is nothing.
	Drop(name string) error
}

// record is what a successor must know of a mount.
type record struct {
	Image string
	Dir   string
	// Shape tells trees with other numbers apart.
	Shape chunkfmt.Digest
	// Init is the request with which the kernel began the connection.
	Init []byte
}

// keepName names the mount at a directory.
func keepName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "fuse-" + hex.EncodeToString(sum[:16])
}

func (r *record) encode() ([]byte, error) {
	p, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("describe the mount at %s: %w", r.Dir, err)
	}
	return p, nil
}

func decodeRecord(p []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(p, &r); err != nil {
		return nil, fmt.Errorf("read the description of a mount: %w", err)
	}
	return &r, nil
}
