package program_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/perf/internal/program"
)

func TestExitCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{flag.ErrHelp, 0, ""},
		{fmt.Errorf("parse: %w", program.ErrUsage), 2, ""},
		{fmt.Errorf("read: %w", context.Canceled), 130, "error: interrupted\n"},
		{errors.New("no disk"), 1, "error: no disk\n"},
	} {
		var out strings.Builder
		if code := program.ExitCode(tt.err, &out); code != tt.code || out.String() != tt.text {
			t.Errorf("%v: %d and %q, want %d and %q", tt.err, code, out.String(), tt.code, tt.text)
		}
	}
}
