package scheduler

import "slices"

// Report says that a peer received a piece from a parent whose bytes did not
// match the piece's digest.
type Report struct {
	// Parent served the piece, Reporter received it.
	Parent, Reporter string
	// Piece is its number.
	Piece int
	// Confirmed says that the supernode saw the bad bytes itself; it then
	// counts whoever the reporter is.
	Confirmed bool
}

// accusers is the number of different reporters whose unconfirmed word shuts a
// parent out, and maxAccused the number of different parents a reporter may
// accuse before its unconfirmed word counts for nothing.
const (
	accusers   = 2
	maxAccused = 3
)

// Quarantine returns, sorted, the parents to shut out: those with a confirmed
// report, and those reported by at least two different peers.
//
// A reporter that accuses three or more parents none of whose guilt was
// confirmed is more likely broken itself, or lying, and is ignored: one liar
// shuts out nobody, and a pair of them at most two parents. Reports of a peer
// about itself are ignored.
func Quarantine(reports []Report) []string {
	confirmed := make(map[string]bool)
	for _, r := range reports {
		if r.Confirmed {
			confirmed[r.Parent] = true
		}
	}
	accused := make(map[string]map[string]bool) // by reporter
	for _, r := range reports {
		if !confirmed[r.Parent] && r.Parent != r.Reporter {
			insert(accused, r.Reporter, r.Parent)
		}
	}
	blamed := make(map[string]map[string]bool) // by parent
	for reporter, parents := range accused {
		if len(parents) >= maxAccused {
			continue
		}
		for parent := range parents {
			insert(blamed, parent, reporter)
		}
	}
	var out []string
	for parent := range confirmed {
		out = append(out, parent)
	}
	for parent, reporters := range blamed {
		if len(reporters) >= accusers {
			out = append(out, parent)
		}
	}
	slices.Sort(out)
	return out
}

func insert(m map[string]map[string]bool, key, value string) {
	if m[key] == nil {
		m[key] = make(map[string]bool)
	}
	m[key][value] = true
}
