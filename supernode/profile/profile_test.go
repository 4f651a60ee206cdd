package profile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/state"
)

// at makes a report of groups: blob 1 below 100, blob 2 from there.
func at(groups ...uint32) []Access {
	var report []Access
	for _, g := range groups {
		a := Access{Blob: task.Digest{1}, Group: g}
		if g >= 100 {
			a.Blob = task.Digest{2}
		}
		report = append(report, a)
	}
	return report
}

func TestMerge(t *testing.T) {
	for _, tt := range []struct {
		name    string
		reports [][]Access
		limit   int
		want    []Access
	}{
		{"nothing", nil, 10, nil},
		{"one report is the profile", [][]Access{at(7, 3, 100, 5)}, 10, at(7, 3, 100, 5)},
		{"repeated accesses count at their first place", [][]Access{at(7, 3, 7, 7, 5)}, 10, at(7, 3, 5)},
		{"the limit cuts the end", [][]Access{at(7, 3, 100, 5)}, 2, at(7, 3)},
		{"no limit below zero", [][]Access{at(7)}, -1, nil},
		{"one report out of order changes nothing", [][]Access{at(1, 2, 3), at(1, 2, 3), at(3, 2, 1)}, 10, at(1, 2, 3)},
		{"what few have comes last", [][]Access{at(9, 1, 2), at(1, 2), at(1, 2)}, 10, at(1, 2, 9)},
		{"of what few have, what more have comes first", [][]Access{at(8, 9), at(1), at(9), at(1), at(1)}, 10, at(1, 9, 8)},
		{"of what as few have, the earlier comes first", [][]Access{at(1, 2, 8), at(1, 9, 2), at(1, 2)}, 10, at(1, 2, 9, 8)},
		{"equal places are ordered by blob and group", [][]Access{at(100, 5), at(5, 100), at(4), at(4)}, 10, at(4, 5, 100)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Merge(tt.reports, tt.limit)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			reversed := slices.Clone(tt.reports)
			slices.Reverse(reversed)
			if again := Merge(reversed, tt.limit); !slices.Equal(again, got) {
				t.Errorf("in another order of the reports: %v, then %v", got, again)
			}
		})
	}
}

func image1(n int) string { return fmt.Sprintf("sha256:%064x", n) }

// clock is a time that the test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func open(t *testing.T, st state.Store, c *clock) *Store {
	t.Helper()
	s, err := Open(Options{State: st, Now: c.Now, Images: 3})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func report(t *testing.T, s *Store, image string, groups ...uint32) {
	t.Helper()
	if err := s.Report(image, at(groups...)); err != nil {
		t.Fatal(err)
	}
}

func flush(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, s *Store, image string, reports int, groups ...uint32) {
	t.Helper()
	got, n, err := s.Profile(image)
	if err != nil || n != reports || !slices.Equal(got, at(groups...)) {
		t.Errorf("%s: %v of %d reports, %v; want %v of %d", image, got, n, err, groups, reports)
	}
}

func TestProfileSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	c := &clock{now: time.Unix(1000, 0)}
	for round := range 3 {
		db, err := state.OpenBolt(path)
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, db, c)
		if round > 0 {
			want(t, s, image1(1), round, 5, 100, 2)
		}
		report(t, s, image1(1), 5, 100, 2)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil { // writes at its end
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyTheLatestReportsCount(t *testing.T) {
	s := open(t, state.NewMemory(), &clock{now: time.Unix(1000, 0)})
	for range 10 {
		report(t, s, image1(1), 1, 2)
	}
	for range maxReports {
		report(t, s, image1(1), 2, 1)
	}
	want(t, s, image1(1), maxReports, 2, 1)
	want(t, s, image1(2), 0)
}

func TestLeastRecentlyUsedImagesAreForgotten(t *testing.T) {
	st, c := state.NewMemory(), &clock{now: time.Unix(1000, 0)}
	s := open(t, st, c)
	for i := range 3 {
		c.now = c.now.Add(time.Minute)
		report(t, s, image1(i), uint32(i))
	}
	flush(t, s)
	c.now = c.now.Add(2 * usedEvery)
	want(t, s, image1(0), 1, 0) // a use
	report(t, s, image1(3), 3)
	flush(t, s)
	for _, s := range []*Store{s, open(t, st, c)} {
		want(t, s, image1(0), 1, 0)
		want(t, s, image1(1), 0)
		want(t, s, image1(3), 1, 3)
	}
	if _, err := st.Get(bucketReports, image1(1)); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("the forgotten profile: %v", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	s, err := Open(Options{State: state.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxLoaded {
		report(t, s, image1(i), 1)
		if i%100 == 0 {
			flush(t, s)
		}
	}
	if n := len(s.loaded); n > maxLoaded+100 {
		t.Errorf("%d images are in memory", n)
	}
	want(t, s, image1(0), 1, 1)
}

func TestInvalidReports(t *testing.T) {
	s := open(t, state.NewMemory(), &clock{})
	for _, tt := range []struct {
		name   string
		image  string
		report []Access
	}{
		{"no image", "", at(1)},
		{"no digest", "golang:latest", at(1)},
		{"another digest", "sha512:" + fmt.Sprintf("%0128x", 1), at(1)},
		{"nothing", image1(1), nil},
		{"too much", image1(1), make([]Access, MaxAccesses+1)},
		{"a group that cannot be", image1(1), []Access{{Group: MaxGroup + 1}}},
	} {
		if err := s.Report(tt.image, tt.report); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if _, _, err := s.Profile("latest"); !errors.Is(err, ErrInvalid) {
		t.Errorf("profile of no image: %v", err)
	}
	want(t, s, image1(1), 0)
}

func TestDamagedProfileIsBegunAnew(t *testing.T) {
	st := state.NewMemory()
	c := &clock{now: time.Unix(1000, 0)}
	s := open(t, st, c)
	report(t, s, image1(1), 1, 2)
	flush(t, s)
	if err := st.Put(bucketReports, image1(1), []byte{version, 200}); err != nil {
		t.Fatal(err)
	}
	s = open(t, st, c)
	want(t, s, image1(1), 0)
	report(t, s, image1(1), 3)
	want(t, s, image1(1), 1, 3)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(encode(nil))
	f.Add(encode([][]Access{at(1, 2, 100), at(100, 1), {}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		reports, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(encode(reports))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(reports) {
			t.Errorf("%v became %v, %v", reports, again, err)
		}
		if !bytes.Equal(encode(again), encode(reports)) {
			t.Error("encoded in two ways")
		}
	})
}
