// Package outputtest is a console for tests of dfctl's commands: it keeps what
// is written, and its clock, terminal and environment are what the test says.
package outputtest

import (
	"bytes"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// Console is an output.Console whose clock advances by Step whenever it is read.
type Console struct {
	*output.Console

	Stdout, Stderr bytes.Buffer
	Time           time.Time
	Step           time.Duration
	Columns        int // 0: not a terminal
	Env            map[string]string
	// OnErr sees what is written to Err.
	OnErr func(string)
}

// New returns a console whose input is in.
func New(in string) *Console {
	f := &Console{Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Env: map[string]string{}}
	f.Console = &output.Console{
		In: strings.NewReader(in), Out: &f.Stdout, Err: stderr{f},
		Width:  func() int { return f.Columns },
		Now:    func() time.Time { f.Time = f.Time.Add(f.Step); return f.Time },
		Getenv: func(name string) string { return f.Env[name] },
	}
	return f
}

type stderr struct{ f *Console }

func (e stderr) Write(b []byte) (int, error) {
	if e.f.OnErr != nil {
		e.f.OnErr(string(b))
	}
	return e.f.Stderr.Write(b)
}
