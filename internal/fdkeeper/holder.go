package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"os"
)

const (
	// MaxFiles is how many descriptors a set can have: the most that the kernel
	// sends in one message.
	MaxFiles = 253
	// MaxName is the most bytes of a name, which are printable ASCII without
	// spaces and colons.
	MaxName = 128
	// MaxMeta is the most bytes that a set can carry.
	MaxMeta = 32 << 10
)

var (
	// ErrNotFound says that a holder answered and does not have the name.
	ErrNotFound = errors.New("no such set of descriptors")
	// ErrInvalid says that a set or name is against the limits.
	ErrInvalid = errors.New("invalid set of descriptors")
	// ErrStale says that the holder has a newer set of that name.
	ErrStale = errors.New("a newer set of descriptors is held")
	// ErrFull says that the holder can hold no more descriptors.
	ErrFull = errors.New("no room for more descriptors")
	// ErrDenied says that client and server run as different users.
	ErrDenied = errors.New("the other side runs as another user")
	// ErrProtocol says that the other side does not follow the protocol or
	// speaks another version of it.
	ErrProtocol = errors.New("fdkeeper protocol error")
)

// Set is a set of descriptors.
type Set struct {
	Name string
	// Stamp orders sets of the same name: higher is newer. Multi gives each Put
	// the next one.
	Stamp uint64
	Meta  []byte
	// Files in the order in which they were put.
	Files []*os.File
}

// Close closes the files of s.
func (s Set) Close() error {
	var errs []error
	for _, f := range s.Files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Entry is what List tells about a set.
type Entry struct {
	Name  string
	Stamp uint64
	// Files is how many descriptors it has.
	Files int
}

// Holder keeps sets: see the package comment.
type Holder interface {
	Put(ctx context.Context, s Set) error
	// Get returns an error that wraps ErrNotFound if the name is not held.
	Get(ctx context.Context, name string) (Set, error)
	// List returns what is held, ordered by name.
	List(ctx context.Context) ([]Entry, error)
	// Drop closes the set. It is no error if there is none.
	Drop(ctx context.Context, name string) error
}

// checkName accepts what every holder can store.
func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("name of %d bytes, want 1 to %d: %w", len(name), MaxName, ErrInvalid)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == ':' {
			return fmt.Errorf("name %q: want printable ASCII without colons: %w", name, ErrInvalid)
		}
	}
	return nil
}

func checkSet(s Set) error {
	if err := checkName(s.Name); err != nil {
		return err
	}
	if len(s.Files) < 1 || len(s.Files) > MaxFiles {
		return fmt.Errorf("%d descriptors, want 1 to %d: %w", len(s.Files), MaxFiles, ErrInvalid)
	}
	if len(s.Meta) > MaxMeta {
		return fmt.Errorf("%d bytes of metadata, want at most %d: %w", len(s.Meta), MaxMeta, ErrInvalid)
	}
	return nil
}
