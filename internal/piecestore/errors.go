package piecestore

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/task"
)

var (
	// ErrClosed is returned by every operation once the store is closed.
	ErrClosed = errors.New("piece store is closed")
	// ErrNotFound is returned for a task that the store does not have.
	ErrNotFound = errors.New("no such task in the piece store")
	// ErrInUse is returned by Remove for a task that somebody references.
	ErrInUse = errors.New("task is in use")
	// ErrTableMismatch is returned by Create for a task that exists with
	// another piece table.
	ErrTableMismatch = errors.New("task exists with another piece table")
	// ErrNotHeld is returned when a piece that is not held is asked for.
	ErrNotHeld = errors.New("piece is not held")
	// ErrIncomplete is returned by MarkComplete while pieces are missing.
	ErrIncomplete = errors.New("task is incomplete")
	// ErrSuperseded is returned by WritePiece when the bytes were of no use
	// although nothing is wrong with them: the task was reset under the writer,
	// or another writer took the piece over and then could not finish. The piece
	// is not held; writing it again is right.
	ErrSuperseded = errors.New("piece write was superseded")
	// ErrFull matches, with errors.Is, every FullError.
	ErrFull = errors.New("piece store is full")
)

// FullError reports that there is no room and nothing left that may be evicted.
// It matches ErrFull, and ENOSPC when the file system itself refused.
type FullError struct {
	// Needed is the number of bytes asked for.
	Needed int64
	// Held and Reserved are the bytes of held pieces and of writes under way.
	Held, Reserved int64
	// Limit and MinFree repeat the store's options, 0 for none.
	Limit, MinFree int64
	// Free is what the file system had free, -1 if that was not looked up.
	Free int64
	// Err is what the file system answered, nil when a limit of the store was
	// reached first.
	Err error
}

// Error says which limit was reached, in bytes.
func (e *FullError) Error() string {
	s := fmt.Sprintf("%v: %d bytes needed, %d held, %d being written", ErrFull, e.Needed, e.Held, e.Reserved)
	if e.Limit > 0 {
		s += fmt.Sprintf(", limit %d", e.Limit)
	}
	if e.Free >= 0 {
		s += fmt.Sprintf(", %d free on disk (at least %d must stay free)", e.Free, e.MinFree)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s + "; not enough can be evicted"
}

// Unwrap makes the error match ErrFull and its cause.
func (e *FullError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrFull}
	}
	return []error{ErrFull, e.Err}
}

// DigestError reports that bytes given to WritePiece are not those of the
// piece. Whoever sent them sent bad bytes.
type DigestError struct {
	ID        task.ID
	Piece     int
	Got, Want task.Digest
}

// Error names the piece and both digests.
func (e *DigestError) Error() string {
	return fmt.Sprintf("piece %d of %s: content has SHA-256 %s, want %s", e.Piece, e.ID.Short(), e.Got, e.Want)
}

// DamagedError reports that a held piece was damaged on disk. When it is
// returned the piece is no longer held and may be fetched again.
type DamagedError struct {
	ID    task.ID
	Piece int
	// Err is the read error that showed the damage, nil when the bytes could be
	// read and had another digest.
	Err error
}

// Error names the piece.
func (e *DamagedError) Error() string {
	s := fmt.Sprintf("piece %d of %s is damaged on disk", e.Piece, e.ID.Short())
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the read error, if there was one.
func (e *DamagedError) Unwrap() error { return e.Err }

// noSpace reports whether the file system is out of room: blocks, or quota.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
