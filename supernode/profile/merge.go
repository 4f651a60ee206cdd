package profile

import (
	"cmp"
	"math"
	"slices"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Access is one group of a blob.
type Access struct {
	Blob  task.Digest
	Group uint32
}

// standing is what reports say of one access.
type standing struct {
	access Access
	ranks  []int // in the reports that have it
	median float64
	mean   float64
}

// Merge orders what the reports have: by the median of the places in them, where
// a report that does not have it counts as a place beyond all. So what at least
// half of the reports lack comes last: there, what more reports have comes first,
// then what they have earlier on average. The result has at most limit entries.
// It does not depend on the order of the reports. An access counts once in a
// report, at its first place.
func Merge(reports [][]Access, limit int) []Access {
	at := map[Access]*standing{}
	for _, report := range reports {
		rank := 0
		seen := make(map[Access]bool, len(report))
		for _, a := range report {
			if seen[a] {
				continue
			}
			seen[a] = true
			s := at[a]
			if s == nil {
				s = &standing{access: a}
				at[a] = s
			}
			s.ranks = append(s.ranks, rank)
			rank++
		}
	}
	list := make([]*standing, 0, len(at))
	for _, s := range at {
		s.summarize(len(reports))
		list = append(list, s)
	}
	slices.SortFunc(list, compare)
	list = list[:min(len(list), max(limit, 0))]
	merged := make([]Access, len(list))
	for i, s := range list {
		merged[i] = s.access
	}
	return merged
}

func (s *standing) summarize(reports int) {
	slices.Sort(s.ranks)
	rank := func(i int) float64 {
		if i < len(s.ranks) {
			return float64(s.ranks[i])
		}
		return math.Inf(1)
	}
	s.median = (rank((reports-1)/2) + rank(reports/2)) / 2
	sum := 0
	for _, r := range s.ranks {
		sum += r
	}
	s.mean = float64(sum) / float64(len(s.ranks))
}

func compare(a, b *standing) int {
	return cmp.Or(
		cmp.Compare(a.median, b.median),
		cmp.Compare(len(b.ranks), len(a.ranks)),
		cmp.Compare(a.mean, b.mean),
		slices.Compare(a.access.Blob[:], b.access.Blob[:]),
		cmp.Compare(a.access.Group, b.access.Group),
	)
}
