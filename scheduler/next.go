package scheduler

import "github.com/damselfly-io/damselfly/internal/task"

// Parent is a peer or supernode that a download fetches from.
type Parent struct {
	// Name identifies the parent; for the caller's use.
	Name string
	// Has are the pieces it advertises.
	Has task.Set
	// InFlight is the number of this download's requests it is serving, Slots
	// the most it may be given.
	InFlight, Slots int
	// Rate is what it was observed to deliver to this download in total, in
	// bytes per second; 0 when unknown.
	Rate float64
	// Foreign says that it stands in another zone: it is asked only for pieces
	// of the download's Share that no parent of the own zone has, unless the
	// download is starved.
	Foreign bool
	// Seed marks the supernode. It is asked only for what no other parent
	// with a free slot has, to keep its uplink for new pieces. Foreign means
	// nothing for it, because Offers keeps to the shares already.
	Seed bool
	// Paused says that it is not to be asked now, for instance after an error.
	Paused bool
}

// Fetching is a request under way.
type Fetching struct {
	// Piece is being fetched from the parent with index Parent.
	Piece, Parent int
	// Stuck says that it has exceeded its Deadline.
	Stuck bool
}

// Download is the state of one task at a downloading peer.
type Download struct {
	// Wanted are the pieces to fetch, Held those already here, and Known those
	// whose digest is known; others are not fetched.
	Wanted, Held, Known task.Set
	// Urgent are pieces that readers wait for, most urgent first.
	Urgent []int
	// Cursors are the next pieces of readers in order; the Window pieces from
	// each are fetched in order before others.
	Cursors []int
	Window  int
	// Parents are all parents, Fetching all requests under way.
	Parents  []Parent
	Fetching []Fetching
	// Share limits what is fetched from foreign parents.
	Share Share
	// Starved says that the share's owners have not delivered for a while
	// (seconds) and the download may import for itself.
	Starved bool
	// Seed orders equally rare pieces and should differ between peers.
	Seed uint64
	// MaxInFlight bounds the requests under way; stuck ones do not count. It
	// should not be less than the sum of the parents' Slots: requests pile up
	// at congested parents, and with no more to give, others would idle. (In
	// the simulated swarm of 20 nodes half as many cost a fifth of the time.)
	MaxInFlight int
}

// Fetch is a request to start.
type Fetch struct {
	// Piece is to be fetched from the parent with index Parent.
	Piece, Parent int
	// Duplicate says that the piece is already being fetched from another.
	Duplicate bool
}

// Slots returns how many requests at once each of n parents should be given.
// Many parents need but one each: more only divide their uplinks among more
// pieces, each of which then takes longer to reach those who could pass it on.
// A few need more, to fill the time between a request and its answer.
func Slots(n int) int {
	const wanted, most = 16, 4 // requests in all, and to one parent
	return min(most, max(1, wanted/max(n, 1)))
}

// Next returns the requests to start now, given what is under way. In this
// order it asks for
//
//   - the urgent pieces,
//   - stuck pieces, a second time, from another parent,
//   - the pieces within Window of a cursor, nearest first,
//   - all others, the rarest among Parents first, equally rare ones in an order
//     that depends on Seed,
//   - in the endgame, pieces under way at a slow parent, a second time, from one
//     expected to be at least twice as fast. The endgame is when all that is
//     wanted is under way, and is no more than the parents' slots hold; a piece
//     that the supernode has offered and has a slot for is treated so at any
//     time.
//
// A piece is asked of the parent with the lowest share of its slots in use and
// then the highest rate; see Parent for those asked last, to which those with a
// stuck request belong too. No piece has more
// than two requests: the caller ends stuck ones in time, so that a piece whose
// parents are both silent is asked of a third.
//
// In tables far beyond the 4,096 pieces of uniform ones, rarity is compared
// among some thousands of pieces, beginning at a place that depends on Seed,
// instead of all.
func Next(d Download) []Fetch {
	p := newPicker(d)
	if p.room <= 0 || p.slots <= 0 {
		return nil
	}
	for _, piece := range d.Urgent {
		p.start(piece)
	}
	p.repeatStuck()
	p.inOrder()
	p.rarest()
	p.endgame()
	return p.fetches
}
