// Package scheduler holds the decisions of the swarm as pure functions: which
// peers fetch from which, which piece is fetched next and from whom, which
// pieces the supernode hands out, who is shut out, and who may go to the
// origin.
//
// Every function is deterministic: it reads a snapshot, changes nothing, keeps
// nothing, and returns the same answer for the same snapshot. There is no
// clock, no randomness, no I/O and no goroutine here, and nothing of the
// project is imported but the vocabulary in internal/task; a test keeps it so.
// Where peers must differ from each other, the difference comes from a hash of
// their names or of a seed in the snapshot.
//
// # How the decisions fit together
//
// The supernode fetches content from the origin and super-seeds it: Offers
// gives every piece to one peer before it gives any piece to two, so that the
// supernode's uplink carries about one copy and the peers' uplinks carry the
// rest. Parents joins the peers into a connected random graph that prefers the
// own zone and rack. Over its edges each peer asks for pieces with Next: what a
// reader waits for, then what readers will want soon, then the rarest. A zone
// imports each piece through one of its members, its owner by ZoneShare.
//
// # What is promised
//
// A peer completes as long as every piece it lacks is held by a parent that
// answers or by the supernode, provided that the caller calls again after each
// event and reports honestly which requests are stuck (Deadline), which peers
// are stalled and which are starved. The functions do not promise the shortest
// possible time, nor fairness between tasks.
//
// Snapshots may contain anything a peer could claim: sets of any length,
// numbers out of range, rates that are not numbers. Such input may make an
// answer useless, never a panic, a request for a piece nobody claims to have,
// or more requests than a parent has slots.
package scheduler
