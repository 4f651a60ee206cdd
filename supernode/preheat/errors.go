package preheat

import (
	"errors"
	"fmt"
)

// Errors of a Manager, possibly wrapped.
var (
	// ErrNotFound is returned for a job that does not exist, or not any more.
	ErrNotFound = errors.New("no such preheat job")
	// ErrNoPeers is returned by Submit if the scope matches no connected node.
	ErrNoPeers = errors.New("no connected node matches the scope")
	// ErrTooMany is returned by Submit while MaxUnfinished jobs are unfinished.
	ErrTooMany = errors.New("too many unfinished preheat jobs")
	// ErrStopping is returned by Submit after Run has ended.
	ErrStopping = errors.New("the supernode is stopping")
)

// The reasons for which a job's context ends.
var (
	errCancelled = errors.New("the job was cancelled")
	errTimedOut  = errors.New("the job's timeout has passed")
)

// InvalidError says what is wrong with a request.
type InvalidError struct {
	Field   string // as in the request's JSON, "" for the request as a whole
	Problem string
}

// Error names the field and the problem.
func (e *InvalidError) Error() string {
	if e.Field == "" {
		return e.Problem
	}
	return e.Field + ": " + e.Problem
}

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)}
}
