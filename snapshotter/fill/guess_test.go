package fill

import (
	"testing"
	"testing/synctest"
)

// play lets a guesser see misses of which a share of the guesses is read, and
// returns how many groups it brought on a guess.
func play(g *guesser, misses int, right func(i int) bool) (brought int) {
	at := 0
	for i := range misses {
		g.judge(4)
		n := g.missed(4)
		for k := range n {
			g.bring(at + k)
			brought++
			if right(i) {
				g.accessed(at + k)
			}
		}
		at += n + 1
	}
	return brought
}

func TestGuessesWidenWhileTheyAreRight(t *testing.T) {
	g := newGuesser(1000)
	play(&g, 20, func(int) bool { return true })
	if g.width != 4 {
		t.Errorf("width %d after right guesses, want the limit of 4", g.width)
	}
}

func TestGuessesEndWhenTheyAreWrong(t *testing.T) {
	g := newGuesser(1000)
	if n := play(&g, retryAfter/2, func(int) bool { return false }); n != judged {
		t.Errorf("%d wrong guesses, want %d", n, judged)
	}
	if n := play(&g, retryAfter, func(int) bool { return true }); n == 0 {
		t.Error("guessing is not tried again")
	}
}

func TestGuessesStayWhenSomeAreRight(t *testing.T) {
	g := newGuesser(1000)
	play(&g, 100, func(i int) bool { return i%4 == 0 })
	if g.width != firstGuess {
		t.Errorf("width %d when a quarter of the guesses is right, want %d", g.width, firstGuess)
	}
}

func TestReadThatComesAgainIsOneRightGuess(t *testing.T) {
	g := newGuesser(10)
	g.bring(3)
	g.accessed(3)
	g.accessed(3)
	g.accessed(4)
	if g.used != 1 {
		t.Errorf("%d right guesses, want 1", g.used)
	}
}

func TestNeighbourComesWithAMissedGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, 20, 64<<10)
		d, src := x.device(), &fetcher{x: x}
		f := newFiller(t, Options{Fetch: src, Guess: 4})
		for _, g := range []int{5, 6} {
			if err := f.group(t.Context(), d, g); err != nil {
				t.Fatal(err)
			}
			d.check(t, g)
			synctest.Wait()
		}
		if log := src.log(); len(log) != 1 || log[0].first != 5 || d.count() != 2 {
			t.Errorf("%d groups by %v, want group 6 together with 5", d.count(), log)
		}
	})
}
