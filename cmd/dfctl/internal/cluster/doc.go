// Package cluster is a client of the supernode's management API.
//
// Its address is --supernode, else DAMSELFLY_SUPERNODE, else DefaultAddress:
// HOST:PORT for HTTP, or a URL for https. A token, which the API asks for
// unless both ends are on one machine, is read from a file and sent as a bearer
// token; redirects are not followed, so that it goes nowhere else.
//
// Errors are sentences that name the supernode and say what to do, with the
// exit codes of package exit. Answers are bounded in size and believed only as
// data.
package cluster
