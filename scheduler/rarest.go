package scheduler

import "math/bits"

// sampleLimit is the number of pieces among which the rarest are looked for in
// one run. It exceeds the pieces of a uniform table.
const sampleLimit = 2 * 4096

// candidate is a piece that can be asked for now.
type candidate struct {
	piece   int
	holders int    // parents that have it
	hash    uint64 // orders equally rare pieces
}

func (c candidate) before(o candidate) bool {
	if c.holders != o.holders {
		return c.holders < o.holders
	}
	return c.hash < o.hash
}

// rarest asks for the rarest pieces until requests or slots run out.
func (p *picker) rarest() {
	for p.room > 0 && p.slots > 0 {
		want := min(p.room, p.slots)
		found := p.sample(want)
		started := 0
		for _, c := range found {
			if p.start(c.piece) {
				started++
			}
		}
		// A piece is not started when those before it took the last slot of
		// its parents. Then others take its place.
		if started == 0 || started == len(found) {
			return
		}
	}
}

// sample returns up to n of the rarest pieces that a parent with a free slot
// can be asked for, in the order in which to ask.
func (p *picker) sample(n int) []candidate {
	best := make([]candidate, 0, min(n, p.slots))
	words := len(p.todo)
	if words == 0 {
		return nil
	}
	first := 0
	if 64*words > sampleLimit {
		first = int(mix(p.Seed) % uint64(words)) //nolint:gosec // less than words
	}
	seen := 0
	for i := 0; i < words && seen < sampleLimit; i++ {
		w := first + i
		if w >= words {
			w -= words
		}
		if p.todo[w] == 0 {
			continue
		}
		count, open := p.survey(w)
		seen += bits.OnesCount64(open)
		if len(best) == cap(best) {
			open &= count.atMost(best[len(best)-1].holders)
		}
		for ; open != 0; open &= open - 1 {
			bit := bits.TrailingZeros64(open)
			c := candidate{piece: 64*w + bit, holders: count.at(bit)}
			c.hash = hashPiece(p.Seed, c.piece)
			best = insertBest(best, c)
		}
	}
	return best
}

// survey counts the holders of each piece of word w that is still to be asked
// for, and returns those that a parent with a free slot can be asked for.
func (p *picker) survey(w int) (count counter, open uint64) {
	var local, imported uint64
	todo := p.todo[w]
	for i := range p.Parents {
		has := word(p.Parents[i].Has, w) & todo
		if has == 0 {
			continue
		}
		count.add(has)
		if p.isLocal(i) {
			local |= has
		}
		switch {
		case p.free(i) == 0:
		case p.imports(i):
			imported |= has
		default:
			open |= has
		}
	}
	if imported &^= local; imported != 0 {
		open |= imported & p.Share.word(w)
	}
	return count, open
}

// insertBest puts c into the sorted best, whose capacity bounds it.
func insertBest(best []candidate, c candidate) []candidate {
	if len(best) == cap(best) {
		if !c.before(best[len(best)-1]) {
			return best
		}
	} else {
		best = append(best, c)
	}
	i := len(best) - 1
	for ; i > 0 && c.before(best[i-1]); i-- {
		best[i] = best[i-1]
	}
	best[i] = c
	return best
}

// counter counts, for each of 64 pieces at once, how often the piece occurs in
// the words added. Plane j holds bit j of all 64 counts, which end at maxCount.
type counter [planes]uint64

const (
	planes   = 6
	maxCount = 1<<planes - 1
)

func (c *counter) add(w uint64) {
	for j := range c {
		c[j], w = c[j]^w, c[j]&w
		if w == 0 {
			return
		}
	}
	for j := range c {
		c[j] |= w
	}
}

// at returns the count of one piece.
func (c *counter) at(bit int) int {
	n := 0
	for j := range c {
		n |= int(c[j]>>bit&1) << j
	}
	return n
}

// atMost returns the pieces whose count is at most n.
func (c *counter) atMost(n int) uint64 {
	if n >= maxCount {
		return ^uint64(0)
	}
	less, equal := uint64(0), ^uint64(0)
	for j := planes - 1; j >= 0; j-- {
		if n>>j&1 != 0 {
			less |= equal &^ c[j]
			equal &= c[j]
		} else {
			equal &^= c[j]
		}
	}
	return less | equal
}
