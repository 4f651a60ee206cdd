package scheduler

import (
	"math"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestShare(t *testing.T) {
	members := []string{"c", "a", "b", "a"}
	tests := []struct {
		self    string
		members []string
		want    Share
	}{
		{"a", members, Share{Slot: 0, Of: 3}},
		{"b", members, Share{Slot: 1, Of: 3}},
		{"c", members, Share{Slot: 2, Of: 3}},
		{"d", members, Share{}},
		{"a", nil, Share{}},
		{"a", []string{"a"}, Share{Slot: 0, Of: 1}},
	}
	for _, test := range tests {
		if got := ZoneShare(test.self, test.members); got != test.want {
			t.Errorf("ZoneShare(%q, %v) = %v, want %v", test.self, test.members, got, test.want)
		}
	}
	if !slices.Equal(members, []string{"c", "a", "b", "a"}) {
		t.Errorf("ZoneShare changed its argument to %v", members)
	}
}

// The word form of a share must agree with the plain one, and the shares of a
// zone must hold each piece once.
func TestShareWords(t *testing.T) {
	for _, of := range []int{-1, 0, 1, 2, 3, 7, 64, 65, 200} {
		owners := make([]int, 64*5)
		for slot := range max(of, 1) {
			s := Share{Slot: slot, Of: of}
			for piece := range owners {
				allowed := s.Allows(piece)
				if inWord := s.word(piece/64)>>(piece%64)&1 != 0; inWord != allowed {
					t.Fatalf("%v: piece %d allowed %v, in its word %v", s, piece, allowed, inWord)
				}
				if allowed {
					owners[piece]++
				}
			}
		}
		for piece, n := range owners {
			if n != 1 {
				t.Errorf("%d members: piece %d has %d owners", of, piece, n)
			}
		}
	}
	if bad := (Share{Slot: 5, Of: 3}); bad.Allows(2) || bad.word(0) != 0 {
		t.Errorf("%v allows pieces", bad)
	}
}

func TestDeadline(t *testing.T) {
	const mib = 1 << 20
	tests := []struct {
		name     string
		n        int64
		rate     float64
		inFlight int
		want     time.Duration
	}{
		{"unknown rate", 2 * mib, 0, 3, 4 * time.Second},
		{"unknown rate, nothing to fetch", 0, 0, 1, 2 * time.Second},
		{"four times the expected", mib, mib, 1, 4 * time.Second},
		{"requests share the rate", mib, mib, 3, 12 * time.Second},
		{"at least half a second", 1, mib, 1, 500 * time.Millisecond},
		{"at most half a minute", 100 * mib, mib, 1, 30 * time.Second},
		{"at most half a minute, unknown rate", 1 << 40, 0, 1, 30 * time.Second},
		{"no request counted", mib, mib, 0, 4 * time.Second},
		{"negative size", -1, mib, 1, 500 * time.Millisecond},
		{"not a rate", mib, math.NaN(), 1, 3 * time.Second},
		{"infinite rate", mib, math.Inf(1), 1, 3 * time.Second},
		{"negative rate", mib, -1, 1, 3 * time.Second},
		{"smallest rate", math.MaxInt64, math.SmallestNonzeroFloat64, math.MaxInt, 30 * time.Second},
	}
	for _, test := range tests {
		if got := Deadline(test.n, test.rate, test.inFlight); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestSlowParents(t *testing.T) {
	tests := []struct {
		name  string
		rates []float64
		want  []int
	}{
		{"none", nil, nil},
		{"equal", []float64{5, 5, 5, 5}, nil},
		{"a tenth is enough", []float64{1, 10, 10, 10}, nil},
		{"less than a tenth", []float64{10, 0.9, 10, 10}, []int{1}},
		{"too few to compare with", []float64{10, 0.1, 10}, nil},
		{"unknown ones do not count", []float64{10, 0.1, 10, 0}, nil},
		{"unknown ones are not slow", []float64{10, 10, 10, 0, math.NaN(), -1}, nil},
		{"two of six", []float64{10, 0.1, 12, 0.2, 11, 9}, []int{1, 3}},
		{"one fast parent makes nobody slow", []float64{1, 1, 1, 1000}, nil},
	}
	for _, test := range tests {
		if got := SlowParents(test.rates); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestQuarantine(t *testing.T) {
	said := func(reporter string, parents ...string) []Report {
		var out []Report
		for i, p := range parents {
			out = append(out, Report{Parent: p, Reporter: reporter, Piece: i})
		}
		return out
	}
	confirmed := Report{Parent: "x", Reporter: "a", Confirmed: true}
	tests := []struct {
		name    string
		reports [][]Report
		want    []string
	}{
		{"no reports", nil, nil},
		{"one word is not enough", [][]Report{said("a", "x")}, nil},
		{"nor the same one again", [][]Report{said("a", "x", "x"), said("a", "x")}, nil},
		{"two reporters", [][]Report{said("a", "x"), said("b", "x")}, []string{"x"}},
		{"confirmed", [][]Report{{confirmed}}, []string{"x"}},
		{"nobody accuses itself", [][]Report{said("x", "x"), said("a", "x")}, nil},
		{"a liar is ignored", [][]Report{said("l", "x", "y", "z"), said("b", "x"), said("c", "y")}, nil},
		{"but not whom others accuse too", [][]Report{said("l", "x", "y", "z"), said("b", "x"), said("c", "x")}, []string{"x"}},
		{"confirmed ones do not make a liar", [][]Report{{confirmed}, said("a", "x", "y", "z"), said("b", "y")}, []string{"x", "y"}},
		{"a liar's confirmed report counts", [][]Report{{confirmed}, said("a", "u", "v", "w")}, []string{"x"}},
		{"sorted", [][]Report{said("a", "y", "x"), said("b", "x", "y")}, []string{"x", "y"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Quarantine(slices.Concat(test.reports...)); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// Two colluding liars among a hundred peers shut out two at most.
func TestQuarantineBoundsLiars(t *testing.T) {
	var reports []Report
	for i := range 100 {
		for _, liar := range []string{"l1", "l2"} {
			reports = append(reports, Report{Parent: "peer-" + strconv.Itoa(i), Reporter: liar})
		}
		if got := Quarantine(reports); len(got) > 2 {
			t.Fatalf("two liars shut out %v", got)
		}
	}
}

func TestMayGoToOrigin(t *testing.T) {
	const grace = 10 * time.Second
	tests := []struct {
		name  string
		state OriginState
		want  bool
	}{
		{"the supernode is there", OriginState{SupernodeReachable: true, UnreachableFor: time.Hour, Cap: 2}, false},
		{"it may return", OriginState{UnreachableFor: 9 * time.Second, Cap: 2}, false},
		{"it is away for long", OriginState{UnreachableFor: grace, Cap: 2}, true},
		{"a parent has the piece", OriginState{UnreachableFor: time.Hour, AtParents: true, Cap: 2}, false},
		{"the cap is reached", OriginState{UnreachableFor: time.Hour, Active: 2, Cap: 2}, false},
		{"below the cap", OriginState{UnreachableFor: time.Hour, Active: 1, Cap: 2}, true},
		{"no cap means never", OriginState{UnreachableFor: time.Hour, Granted: true}, false},
		{"sent by the supernode", OriginState{SupernodeReachable: true, Granted: true, AtParents: true, Cap: 1}, true},
		{"sent by the supernode, but the cap is reached", OriginState{Granted: true, Active: 1, Cap: 1}, false},
	}
	for _, test := range tests {
		if got := MayGoToOrigin(test.state, grace); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}
