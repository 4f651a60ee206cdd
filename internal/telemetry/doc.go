// Package telemetry is how a daemon can be observed: its log, its health, its
// metrics and its profiles, and the HTTP server that shows them.
//
// Nothing here is global. Metrics live in the registry the daemon made, the
// logger is passed on, and http.DefaultServeMux is never served. Constructors
// start nothing; Serve runs in its caller's goroutine until its context ends
// and returns only after every goroutine it started has.
//
// The profiles under /debug/pprof/ show memory contents and can slow a
// process, so they are given only to clients on this machine. The rest of the
// endpoints carry no secrets and have no access control.
package telemetry
