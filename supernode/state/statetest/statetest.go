// Package statetest holds the tests that every state.Store passes. It is
// imported by tests alone; an implementation outside package state calls Run
// from a test of its own to show that it keeps the contract.
package statetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/supernode/state"
)

// Run checks the contract on stores that open returns. Each call of open must
// give an empty store, which Run closes.
func Run(t *testing.T, open func(t *testing.T) state.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, state.Store)
	}{
		{"values", values},
		{"copies", copies},
		{"order", order},
		{"change while visiting", changeWhileVisiting},
		{"error of the callback", callbackError},
		{"names", names},
		{"concurrent use", concurrent},
		{"closed", closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			c.test(t, s)
		})
	}
}

// RunDurable checks that what one store was told is known to the next that is
// opened at the same place. Each call of open must return a store on the same
// data.
func RunDurable(t *testing.T, open func(t *testing.T) state.Store) {
	s := open(t)
	put(t, s, "b", "kept", "1")
	put(t, s, "b", "deleted", "2")
	if err := s.Delete("b", "deleted"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	want(t, s, "b", "kept", "1")
	missing(t, s, "b", "deleted")
}

func put(t *testing.T, s state.Store, bucket, key, value string) {
	t.Helper()
	if err := s.Put(bucket, key, []byte(value)); err != nil {
		t.Fatalf("Put(%s, %s): %v", bucket, key, err)
	}
}

func want(t *testing.T, s state.Store, bucket, key, value string) {
	t.Helper()
	got, err := s.Get(bucket, key)
	if err != nil || string(got) != value || got == nil {
		t.Fatalf("Get(%s, %s) = %q, %v; want %q", bucket, key, got, err, value)
	}
}

func missing(t *testing.T, s state.Store, bucket, key string) {
	t.Helper()
	if got, err := s.Get(bucket, key); !errors.Is(err, state.ErrNotFound) || got != nil {
		t.Fatalf("Get(%s, %s) = %q, %v; want ErrNotFound", bucket, key, got, err)
	}
}

func values(t *testing.T, s state.Store) {
	missing(t, s, "a", "k")
	if err := s.Delete("a", "k"); err != nil {
		t.Fatalf("deleting from an unknown bucket: %v", err)
	}
	put(t, s, "a", "k", "one")
	want(t, s, "a", "k", "one")
	missing(t, s, "other", "k")
	missing(t, s, "a", "other")
	put(t, s, "a", "k", "two")
	want(t, s, "a", "k", "two")
	if err := s.Put("a", "empty", nil); err != nil {
		t.Fatal(err)
	}
	want(t, s, "a", "empty", "")
	if err := s.Delete("a", "k"); err != nil {
		t.Fatal(err)
	}
	missing(t, s, "a", "k")
	if err := s.Delete("a", "k"); err != nil {
		t.Fatalf("deleting what is gone: %v", err)
	}
}

func copies(t *testing.T, s state.Store) {
	in := []byte("value")
	if err := s.Put("b", "k", in); err != nil {
		t.Fatal(err)
	}
	in[0] = 'X'
	want(t, s, "b", "k", "value")
	out, err := s.Get("b", "k")
	if err != nil {
		t.Fatal(err)
	}
	out[0] = 'X'
	want(t, s, "b", "k", "value")
	var kept []byte
	if err := s.ForEach("b", func(_ string, v []byte) error { kept = v; return nil }); err != nil {
		t.Fatal(err)
	}
	kept[0] = 'X'
	want(t, s, "b", "k", "value")
	put(t, s, "b", "k", "other")
	if !bytes.Equal(kept, []byte("Xalue")) {
		t.Fatalf("a visited value became %q", kept)
	}
}

func keys(t *testing.T, s state.Store, bucket string) []string {
	t.Helper()
	var got []string
	if err := s.ForEach(bucket, func(k string, _ []byte) error { got = append(got, k); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func order(t *testing.T, s state.Store) {
	if got := keys(t, s, "none"); got != nil {
		t.Fatalf("an unknown bucket has %v", got)
	}
	all := []string{"b", "a", "\xff", "ab", "a\x00", "B", "ä"}
	for _, k := range all {
		put(t, s, "o", k, "v"+k)
	}
	put(t, s, "o2", "elsewhere", "v")
	slices.Sort(all)
	if got := keys(t, s, "o"); !slices.Equal(got, all) {
		t.Fatalf("visited %q, want %q", got, all)
	}
}

func changeWhileVisiting(t *testing.T, s state.Store) {
	for i := range 20 {
		put(t, s, "c", fmt.Sprintf("%02d", i), "old")
	}
	visited := 0
	err := s.ForEach("c", func(k string, v []byte) error {
		visited++
		if string(v) != "old" {
			t.Errorf("visited %s = %q, which was put during the visit", k, v)
		}
		if err := s.Put("c", k+"-new", v); err != nil {
			return err
		}
		if err := s.Put("c", "19", []byte("new")); err != nil {
			return err
		}
		return s.Delete("c", k)
	})
	if err != nil {
		t.Fatal(err)
	}
	if visited != 20 || len(keys(t, s, "c")) != 20 {
		t.Fatalf("visited %d of 20; %d keys afterwards", visited, len(keys(t, s, "c")))
	}
}

func callbackError(t *testing.T, s state.Store) {
	put(t, s, "e", "1", "")
	put(t, s, "e", "2", "")
	stop, calls := errors.New("stop"), 0
	if err := s.ForEach("e", func(string, []byte) error { calls++; return stop }); err != stop || calls != 1 { //nolint:errorlint // the very error is promised
		t.Fatalf("ForEach = %v after %d calls, want the callback's error after 1", err, calls)
	}
}

func names(t *testing.T, s state.Store) {
	long := strings.Repeat("x", state.MaxKey)
	put(t, s, long, long, "v")
	want(t, s, long, long, "v")
	for _, n := range [][2]string{{"", "k"}, {"b", ""}, {"b", long + "x"}, {long + "x", "k"}} {
		_, err := s.Get(n[0], n[1])
		for what, err := range map[string]error{"Get": err, "Put": s.Put(n[0], n[1], nil), "Delete": s.Delete(n[0], n[1])} {
			if !errors.Is(err, state.ErrInvalidKey) {
				t.Errorf("%s(%.5q, %.5q) = %v, want ErrInvalidKey", what, n[0], n[1], err)
			}
		}
	}
	if err := s.ForEach("", nil); !errors.Is(err, state.ErrInvalidKey) {
		t.Errorf("ForEach of no bucket = %v, want ErrInvalidKey", err)
	}
}

func concurrent(t *testing.T, s state.Store) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			k := fmt.Sprint(i)
			for n := range 5 {
				if err := s.Put("w", k, fmt.Append(nil, n)); err != nil {
					t.Errorf("Put: %v", err)
				}
				if v, err := s.Get("w", k); err != nil || string(v) != fmt.Sprint(n) {
					t.Errorf("Get = %q, %v, want %d", v, err, n)
				}
				if err := s.ForEach("w", func(string, []byte) error { return nil }); err != nil {
					t.Errorf("ForEach: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if got := keys(t, s, "w"); len(got) != 8 {
		t.Fatalf("keys %v, want 8", got)
	}
}

func closed(t *testing.T, s state.Store) {
	put(t, s, "b", "k", "v")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get("b", "k")
	for what, err := range map[string]error{
		"Get": err, "Put": s.Put("b", "k", nil), "Delete": s.Delete("b", "k"),
		"ForEach": s.ForEach("b", func(string, []byte) error { return nil }),
	} {
		if !errors.Is(err, state.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", what, err)
		}
	}
}
