package profile

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// oldest returns the n images that were used least recently.
func oldest(used map[string]time.Time, n int) []string {
	if n <= 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(used), func(a, b string) int {
		return cmp.Or(used[a].Compare(used[b]), cmp.Compare(a, b))
	})
	return names[:min(n, len(names))]
}
