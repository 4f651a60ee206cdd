package testenv_test

import (
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestEventuallyWaitsForItsCondition(t *testing.T) {
	calls := 0
	testenv.Eventually(t, func() bool { calls++; return calls == 3 }, "the third call")
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
}
