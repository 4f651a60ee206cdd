// Package output is how dfctl speaks: tables and progress for people, one JSON
// document for programs.
//
// Results go to Console.Out and nothing else does; progress and remarks go to
// Console.Err. On a terminal progress is redrawn in place, elsewhere it is a
// line now and then. With -o json there is no progress, and a command writes
// exactly one document, or none if it fails before it has a result.
//
// Text that comes from elsewhere (names, URLs, error messages of servers)
// passes through Clean, so that it can neither break a table nor drive the
// terminal. JSON carries it unchanged.
package output
