// Package engine downloads tasks through the swarm and reads them.
//
// Open gives a Handle on a task as soon as its piece table is known; Copy sends
// a range of its verified bytes to a writer, each piece as soon as it is there.
// What the store holds complete is served without asking anybody.
//
// Each task that is not complete has one download while somebody wants it, with
// one goroutine that owns its state: what is known, held and under way. Other
// goroutines (readers, fetches, feeds of parents, the supernode's stream) post
// functions to it and never touch that state. Which piece to fetch from whom is
// decided by package scheduler.
//
// A piece from a peer or the supernode is kept only if its SHA-256 is the one
// the supernode published. While no supernode is connected, and no known parent
// has what is missing, the download reads it from the origin itself: such
// pieces are unproven, are not offered to peers until the digest of the whole
// has matched, and the last of them is not given to readers before that.
//
// A download that nobody uses any more goes on for a moment (Options.Linger),
// since container runtimes come back for what they were cut off from, and then
// stops; what it has fetched stays.
package engine
