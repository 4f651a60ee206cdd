package testenv_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// recorder is a testing.TB that records how the code under test ended it.
type recorder struct {
	testing.TB
	ended string
}

func (r *recorder) Helper() {}

func (r *recorder) Skip(args ...any) { r.end("skip: " + fmt.Sprint(args...)) }

func (r *recorder) Skipf(format string, args ...any) { r.end("skip: " + fmt.Sprintf(format, args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.end("fatal: " + fmt.Sprintf(format, args...))
}

func (r *recorder) end(how string) {
	r.ended = how
	runtime.Goexit()
}

// outcome runs need as a test of its own and returns how it ended.
func outcome(need func(testing.TB)) string {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		need(r)
	}()
	<-done
	return r.ended
}

func TestUnmetNeed(t *testing.T) {
	needs := map[string]func(testing.TB){
		"no-such-program": func(tb testing.TB) { testenv.Tool(tb, "no-such-program") },
		"needs Linux 99":  func(tb testing.TB) { testenv.Kernel(tb, 99, 0) },
	}
	for reason, need := range needs {
		t.Setenv("DAMSELFLY_REQUIRE_ALL", "")
		if got := outcome(need); !strings.HasPrefix(got, "skip: ") || !strings.Contains(got, reason) {
			t.Errorf("%s: ended with %q", reason, got)
		}
		t.Setenv("DAMSELFLY_REQUIRE_ALL", "1")
		if got := outcome(need); !strings.HasPrefix(got, "fatal: ") || !strings.Contains(got, reason) {
			t.Errorf("%s, everything required: ended with %q", reason, got)
		}
	}
}

func TestMetNeed(t *testing.T) {
	t.Setenv("DAMSELFLY_REQUIRE_ALL", "1")
	if got := outcome(func(tb testing.TB) {
		testenv.Integration(tb)
		testenv.Kernel(tb, 2, 6)
		testenv.Tool(tb, "sh")
	}); got != "" {
		t.Errorf("ended with %q", got)
	}
}

func TestIntegrationIsOptIn(t *testing.T) {
	t.Setenv("DAMSELFLY_REQUIRE_ALL", "")
	for value, want := range map[string]string{"": "skip: ", "0": "skip: ", "1": ""} {
		t.Setenv("DAMSELFLY_INTEGRATION", value)
		if got := outcome(testenv.Integration); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("DAMSELFLY_INTEGRATION=%q: ended with %q", value, got)
		}
	}
}

func TestNetns(t *testing.T) {
	testenv.Integration(t)
	if name := testenv.Netns(t); !strings.HasPrefix(name, "damselfly-test-") {
		t.Errorf("got %q", name)
	}
}
