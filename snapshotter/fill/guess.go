package fill

import "github.com/damselfly-io/damselfly/internal/task"

const (
	// firstGuess is how many groups behind a missed one are brought at first.
	firstGuess = 1
	// judged is how many guesses are made before they are judged.
	judged = 4
	// retryAfter is after how many misses guessing is tried again that has failed.
	retryAfter = 64
)

// guesser decides how many groups that lie behind a missed one in the blob are
// brought with it. Blobs are packed in the order of paths, so a program that has
// read one file of a directory often reads the next. Whether that is so here is
// told by how many of the guesses were read.
type guesser struct {
	width   int // groups that are brought now
	open    task.Set
	guessed int // since the width was changed
	used    int // of those
	misses  int // since guessing was given up
}

func newGuesser(groups int) guesser { return guesser{width: firstGuess, open: task.NewSet(groups)} }

// missed returns how many groups to bring behind one that is missing, at most
// limit.
func (g *guesser) missed(limit int) int {
	if g.width == 0 {
		if g.misses++; g.misses < retryAfter {
			return 0
		}
		*g = guesser{width: firstGuess, open: g.open}
	}
	return min(g.width, limit)
}

// bring notes that a group is brought on a guess.
func (g *guesser) bring(group int) {
	g.open.Add(group)
	g.guessed++
}

// accessed notes that a reader wants a group.
func (g *guesser) accessed(group int) {
	if !g.open.Has(group) {
		return
	}
	g.open.Remove(group)
	g.used++
}

// judge widens guesses of which half are right, and gives up those of which
// fewer than a quarter are.
func (g *guesser) judge(limit int) {
	if g.guessed < judged*max(g.width, 1) {
		return
	}
	switch {
	case 2*g.used >= g.guessed:
		g.width = min(2*g.width, limit)
	case 4*g.used < g.guessed:
		g.width = 0
	}
	g.guessed, g.used, g.misses = 0, 0, 0
}
