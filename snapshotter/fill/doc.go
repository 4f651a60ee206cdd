// Package fill brings what is missing to devices: it is the snapshotter's
// backend.Filler, between the mounts and the daemon.
//
// # Demand
//
// Fill returns when the groups under a range are present. Whoever wants a group
// at the same time waits for the same fetch of it, which goes on when its
// readers give up. Groups that lie next to each other in the blob are asked for
// in one read, and each is proven, decoded, written and given to its readers as
// soon as its own bytes have come.
//
// Reads that follow one another are seen by their place in the device, several
// sequences at a time. Such a reader gets the groups ahead of it, never further
// than it has already read in sequence, nor than Options.Readahead. A read
// that follows no other moves its own groups only.
//
// A group that a reader wants is not left to a read that would bring it late:
// one in the background, or one with much before it. It is asked for again, by
// itself; the daemon fetches it once nevertheless.
//
// # Failures
//
// What may pass (the daemon restarts, the registry does not answer, refuses or
// does not know the blob) is tried again, at all places the blob is known to be
// at, while a reader waits and for Options.Deadline at most. What cannot pass (a
// full disk, content with another digest than its name) fails at once. Bytes that are not what the table says are asked for
// again, with the daemon's copy discarded before the last attempt of three; then
// the error wraps content.ErrCorrupt. Nothing unproven is ever written.
//
// # Background
//
// Complete and Prefetch bring groups that nobody waits for yet. Complete yields
// to demand and to its Limiter; Prefetch does not. Both give up a group that
// cannot be had, and go on.
//
// Memory for groups in flight is bounded by Options.MemoryBudget, of which
// background work has at most half; decoding is bounded by the number of
// processors.
package fill
