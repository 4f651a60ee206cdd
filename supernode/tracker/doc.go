// Package tracker knows who is in the cluster and who holds what, and tells
// every daemon where to fetch the pieces it wants.
//
// Each daemon keeps one stream. On it the tracker learns of interest, held and
// finished pieces, and answers with the task's shape, parents with tickets, and
// piece digests. What is sent is computed when the stream is ready to take it,
// from what has changed since: a slow daemon gets fewer, larger messages, and
// costs no queue.
//
// Links between interested peers are mutual: whoever was given a piece first
// can be asked by somebody, however large the cluster is. The tracker's own
// store is one more parent of everybody; which pieces it offers to whom follows
// the super-seeding of package scheduler.
//
// A peer is quarantined when it was seen, by the supernode itself or by two
// others, to send bytes that do not match their digest.
//
// Lock order: Tracker.mu, then swarm.mu, then a peer's outbox. Policy is
// package scheduler's; the tracker only applies it.
package tracker
