package scheduler

import (
	"math/bits"

	"github.com/damselfly-io/damselfly/internal/task"
)

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
	// of the download's Share, unless the download is starved.
	Foreign bool
	// Seed marks the supernode. It is asked only for what no other parent
	// with a free slot has, to keep its uplink for new pieces.
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
	// Parents are all parents, Fetching all requests under way. A request
	// whose parent is gone has a Parent index out of range.
	Parents  []Parent
	Fetching []Fetching
	// Share limits what is fetched from foreign parents.
	Share Share
	// Starved says that the share's owners have not delivered for a while
	// (seconds) and the download may import for itself.
	Starved bool
	// Seed orders equally rare pieces and should differ between peers.
	Seed uint64
	// MaxInFlight bounds the requests under way; stuck ones do not count.
	MaxInFlight int
}

// Fetch is a request to start.
type Fetch struct {
	// Piece is to be fetched from the parent with index Parent.
	Piece, Parent int
	// Duplicate says that the piece is already being fetched from another.
	Duplicate bool
}

func (d *Download) missing(piece int) bool {
	return d.Wanted.Has(piece) && d.Known.Has(piece) && !d.Held.Has(piece)
}

// Next returns the requests to start now.
func Next(d Download) []Fetch {
	n := picker{Download: d, free: make([]int, len(d.Parents)), busy: task.NewSet(64 * len(d.Wanted))}
	for i, p := range d.Parents {
		if !p.Paused {
			n.free[i] = max(p.Slots-p.InFlight, 0)
		}
	}
	room := d.MaxInFlight
	for _, f := range d.Fetching {
		if d.Wanted.Has(f.Piece) {
			n.busy.Add(f.Piece)
		}
		if !f.Stuck {
			room--
		}
	}
	n.room = room
	for _, piece := range d.Urgent {
		n.start(piece)
	}
	for off := range max(d.Window, 0) {
		for _, c := range d.Cursors {
			n.start(c + off)
		}
	}
	for w := range d.Wanted {
		for left := d.Wanted[w] &^ word(d.Held, w) &^ n.busy[w]; left != 0; left &= left - 1 {
			n.start(w*64 + bits.TrailingZeros64(left))
		}
	}
	return n.fetches
}

type picker struct {
	Download
	free    []int
	busy    task.Set
	room    int
	fetches []Fetch
}

func (n *picker) start(piece int) {
	if n.room <= 0 || !n.missing(piece) || n.busy.Has(piece) {
		return
	}
	best := -1
	for i := range n.Parents {
		p := &n.Parents[i]
		if n.free[i] <= 0 || !p.Has.Has(piece) || (p.Foreign && !n.Starved && !n.Share.Allows(piece)) {
			continue
		}
		if best < 0 || (n.Parents[best].Seed && !p.Seed) || (n.Parents[best].Seed == p.Seed && n.free[i] > n.free[best]) {
			best = i
		}
	}
	if best < 0 {
		return
	}
	n.free[best]--
	n.room--
	n.busy.Add(piece)
	n.fetches = append(n.fetches, Fetch{Piece: piece, Parent: best})
}
