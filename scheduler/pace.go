package scheduler

import (
	"math"
	"slices"
	"time"
)

const (
	// Bounds of Deadline. The least covers scheduling and one lost packet; the
	// most keeps a parent that trickles from holding a piece for long.
	minDeadline = 500 * time.Millisecond
	maxDeadline = 30 * time.Second
	// slack is how many times the expected duration a fetch may take.
	slack = 4
	// With no rate known a fetch gets firstDeadline and the time its bytes
	// take at assumedRate, in bytes per second.
	firstDeadline = 2 * time.Second
	assumedRate   = 1 << 20

	// slowFactor is how far below the median a parent's rate must be for the
	// parent to be dropped, and slowQuorum the least number of other rates
	// that make a median.
	slowFactor = 10
	slowQuorum = 3
)

// Deadline returns how long a fetch of n bytes may take before it counts as
// stuck. rate is what the parent was observed to deliver in total, in bytes
// per second, 0 when unknown; inFlight is the number of requests, this one
// included, that share it. The answer is four times the expected duration,
// within 500 ms and 30 s.
func Deadline(n int64, rate float64, inFlight int) time.Duration {
	bytes := float64(max(n, 0))
	allowed := firstDeadline.Seconds() + bytes/assumedRate
	if known(rate) {
		allowed = slack * bytes * float64(max(inFlight, 1)) / rate
	}
	if allowed >= maxDeadline.Seconds() {
		return maxDeadline
	}
	return max(minDeadline, time.Duration(allowed*float64(time.Second)))
}

// SlowParents returns the indexes of parents to drop: those whose rate, in
// bytes per second, is below a tenth of the median of the others'. A rate
// that is not known (0) is neither judged nor counted, and fewer than three
// other rates judge nobody.
func SlowParents(rates []float64) []int {
	var slow []int
	others := make([]float64, 0, len(rates))
	for i, r := range rates {
		if !known(r) {
			continue
		}
		others = others[:0]
		for j, o := range rates {
			if j != i && known(o) {
				others = append(others, o)
			}
		}
		if len(others) < slowQuorum {
			continue
		}
		slices.Sort(others)
		if r < others[len(others)/2]/slowFactor {
			slow = append(slow, i)
		}
	}
	return slow
}

// known reports whether a rate is an observed one.
func known(rate float64) bool { return rate > 0 && !math.IsInf(rate, 1) }
