// Package supernode puts a supernode together: the tracker and CDN cache that
// daemons talk to, the answers to small registry requests, preheat jobs and the
// management API.
//
// Run holds three listeners (HTTP, gRPC, pieces) and the data directory for as
// long as its context lives. In the data directory are the cache (cache/), and
// the state (state.db): the key that tickets are derived from, and preheat
// jobs. Losing the directory costs time, never correctness.
package supernode
