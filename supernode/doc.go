// Package supernode puts a supernode together: the tracker and CDN cache that
// daemons talk to, the answers to small registry requests, preheat jobs and the
// management API.
//
// Run holds three listeners (HTTP, gRPC, pieces) and the data directory for as
// long as its context lives. In the data directory are the cache (cache/), the
// state (state.db): the key that tickets are derived from, preheat jobs, and
// accelerated images, and the key that signs their indexes
// (accelerate/key.pem), which nodes learn when they join. Losing the directory costs time, never correctness.
package supernode
