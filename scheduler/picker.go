package scheduler

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/damselfly-io/damselfly/internal/task"
)

// picker is one run of Next.
type picker struct {
	Download
	todo    task.Set // wanted, known, neither held nor under way
	load    []int    // per parent, its requests, those of this run included
	late    []bool   // per parent, whether one of its requests is stuck
	room    int      // requests still allowed by MaxInFlight
	slots   int      // free slots of all parents
	fetches []Fetch
}

func newPicker(d Download) *picker {
	p := &picker{
		Download: d,
		todo:     make(task.Set, len(d.Wanted)),
		load:     make([]int, len(d.Parents)),
		late:     make([]bool, len(d.Parents)),
		room:     d.MaxInFlight,
	}
	for w := range p.todo {
		p.todo[w] = d.Wanted[w] & word(d.Known, w) &^ word(d.Held, w)
	}
	for _, f := range d.Fetching {
		if p.todo.Has(f.Piece) {
			p.todo.Remove(f.Piece)
		}
		if !f.Stuck {
			p.room--
		} else if f.Parent >= 0 && f.Parent < len(p.late) {
			p.late[f.Parent] = true
		}
	}
	for i := range d.Parents {
		p.load[i] = max(d.Parents[i].InFlight, 0)
		p.slots += p.free(i)
	}
	return p
}

// free returns how many more requests parent i may be given.
func (p *picker) free(i int) int {
	if p.Parents[i].Paused {
		return 0
	}
	return max(p.Parents[i].Slots-p.load[i], 0)
}

// start asks for a piece that is not under way.
func (p *picker) start(piece int) bool {
	if p.room <= 0 || p.slots <= 0 || !p.todo.Has(piece) {
		return false
	}
	parent := p.parentFor(piece, -1, -1)
	if parent < 0 {
		return false
	}
	p.todo.Remove(piece)
	p.request(Fetch{Piece: piece, Parent: parent})
	return true
}

func (p *picker) request(f Fetch) {
	p.load[f.Parent]++
	p.slots--
	p.room--
	p.fetches = append(p.fetches, f)
}

// parentFor returns the best parent to ask for piece, or -1. The parent not is
// excluded, and so is any that is not expected to deliver at more than floor
// bytes per second, unless floor is negative.
func (p *picker) parentFor(piece, not int, floor float64) int {
	best, local := -1, false
	for i := range p.Parents {
		if !p.Parents[i].Has.Has(piece) {
			continue
		}
		local = local || p.isLocal(i)
		if i == not || p.free(i) == 0 || (floor >= 0 && !(p.pace(i, 1) > floor)) {
			continue
		}
		if p.imports(i) && !p.Share.Allows(piece) {
			continue
		}
		if best < 0 || p.compare(i, best, piece) < 0 {
			best = i
		}
	}
	if best >= 0 && local && p.imports(best) {
		return -1 // the zone has it: wait for a slot there
	}
	return best
}

// isLocal reports whether parent i spares the zone an import.
func (p *picker) isLocal(i int) bool {
	parent := &p.Parents[i]
	return !parent.Foreign && !parent.Seed && !parent.Paused
}

// imports reports whether a fetch from parent i is bound by the share.
func (p *picker) imports(i int) bool {
	return p.Parents[i].Foreign && !p.Parents[i].Seed && !p.Starved
}

// pace is the rate at which parent i would deliver one of its requests if it
// had more of them than now.
func (p *picker) pace(i, more int) float64 {
	if !known(p.Parents[i].Rate) {
		return 0
	}
	return p.Parents[i].Rate / float64(max(p.load[i]+more, 1))
}

// compare orders parents that can deliver a piece, the better one first.
func (p *picker) compare(i, j, piece int) int {
	a, b := &p.Parents[i], &p.Parents[j]
	return cmp.Or(
		compareBool(p.late[i], p.late[j]),
		compareBool(a.Seed, b.Seed),
		compareBool(a.Foreign, b.Foreign),
		cmp.Compare(p.load[i]*b.Slots, p.load[j]*a.Slots),
		cmp.Compare(b.Rate, a.Rate),
		cmp.Compare(hashPiece(p.Seed+uint64(i), piece), hashPiece(p.Seed+uint64(j), piece)), //nolint:gosec // an index is not negative
	)
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// inOrder asks for the pieces that readers will want soon.
func (p *picker) inOrder() {
	for off := range min(max(p.Window, 0), 64*len(p.todo)) {
		for _, c := range p.Cursors {
			if p.room <= 0 || p.slots <= 0 {
				return
			}
			p.start(c + off)
		}
	}
}

// repeatStuck asks another parent for each stuck piece.
func (p *picker) repeatStuck() {
	for _, f := range p.Fetching {
		if f.Stuck {
			p.repeat(f, -1)
		}
	}
}

// endgame asks faster parents for what slow ones are about to deliver. Before
// the endgame only pieces that the supernode has offered are repeated: an offer
// not taken up by now is for a piece under way elsewhere, and as long as that
// piece is pending the supernode offers no other.
func (p *picker) endgame() {
	if p.room <= 0 || p.slots <= 0 {
		return
	}
	last := p.isEndgame()
	slowest := make([]Fetching, 0, len(p.Fetching))
	for _, f := range p.Fetching {
		if !f.Stuck && f.Parent >= 0 && f.Parent < len(p.Parents) && p.pace(f.Parent, 0) > 0 && (last || p.offered(f.Piece)) {
			slowest = append(slowest, f)
		}
	}
	slices.SortStableFunc(slowest, func(a, b Fetching) int {
		return cmp.Compare(p.pace(a.Parent, 0), p.pace(b.Parent, 0))
	})
	for _, f := range slowest {
		p.repeat(f, endgameGain*p.pace(f.Parent, 0))
	}
}

// offered reports whether the supernode has the piece and a free slot.
func (p *picker) offered(piece int) bool {
	for i := range p.Parents {
		if p.Parents[i].Seed && p.free(i) > 0 && p.Parents[i].Has.Has(piece) {
			return true
		}
	}
	return false
}

// endgameGain is how much faster a parent must be expected to deliver for a
// piece to be fetched twice. Less than two would double the traffic of a
// swarm's last moments for nothing: all links are full then.
const endgameGain = 2

func (p *picker) isEndgame() bool {
	slots := 0
	for i := range p.Parents {
		if !p.Parents[i].Paused {
			slots += max(p.Parents[i].Slots, 0)
		}
	}
	missing := 0
	for w := range p.todo {
		left := p.Wanted[w] &^ word(p.Held, w)
		if p.todo[w] != 0 || left&^word(p.Known, w) != 0 {
			return false
		}
		missing += bits.OnesCount64(left)
	}
	return missing <= slots
}

// repeat asks a second parent, faster than floor, for a piece under way.
func (p *picker) repeat(f Fetching, floor float64) {
	if p.room <= 0 || p.slots <= 0 || !p.missing(f.Piece) || p.copies(f.Piece) > 1 {
		return
	}
	if parent := p.parentFor(f.Piece, f.Parent, floor); parent >= 0 {
		p.request(Fetch{Piece: f.Piece, Parent: parent, Duplicate: true})
	}
}

// missing reports whether the piece is to be fetched, under way or not.
func (p *picker) missing(piece int) bool {
	return p.Wanted.Has(piece) && p.Known.Has(piece) && !p.Held.Has(piece)
}

// copies returns the number of requests for a piece, those of this run
// included.
func (p *picker) copies(piece int) int {
	n := 0
	for _, f := range p.Fetching {
		if f.Piece == piece {
			n++
		}
	}
	for _, f := range p.fetches {
		if f.Piece == piece {
			n++
		}
	}
	return n
}
