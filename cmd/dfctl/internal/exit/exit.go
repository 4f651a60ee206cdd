// Package exit lets an error choose the exit code of dfctl.
//
// Codes 0, 1, 2 and 130 are those of all of Damselfly's programs (see
// internal/cli). The ones here tell a script what it cannot repair by trying
// again. An error without a code exits with 1.
package exit

import "errors"

// Exit codes besides those of internal/cli.
const (
	Mismatch = 3 // the content is not what its digest says
	NotFound = 4 // the origin, or the cluster, does not have it
	Refused  = 5 // the origin, or the cluster, does not allow it
)

// Summary is the part of a help text that explains the exit codes.
const Summary = `Exit codes:
  0    success
  1    failure
  2    wrong use
  3    the content does not match its digest
  4    not found
  5    access refused
  130  interrupted`

// Error is an error with an exit code.
type Error struct {
	Code int
	Err  error
}

// With gives err an exit code. It returns nil for a nil err.
func With(code int, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without its code.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the code.
func (e *Error) ExitCode() int { return e.Code }

// Code returns the exit code that err carries, and false if it carries none.
func Code(err error) (int, bool) {
	var e *Error
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.Code, true
}
