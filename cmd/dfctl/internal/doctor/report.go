package doctor

import (
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// Status is how a finding is to be taken.
type Status string

// The statuses.
const (
	OK Status = "ok"
	// Warning is what works, but not as well as it could.
	Warning Status = "warning"
	// Problem is what has to be repaired.
	Problem Status = "problem"
	// Unknown is what could not be looked at.
	Unknown Status = "unknown"
)

// Finding is the outcome of one check.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	// Meaning and Remedy are empty if all is well.
	Meaning string `json:"meaning,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// Report is what dfctl doctor prints.
type Report struct {
	// OK is false if there is a problem.
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}

func (r *Report) add(f Finding) {
	r.Findings = append(r.Findings, f)
	r.OK = r.OK && f.Status != Problem
}

func (r *Report) count(s Status) int {
	n := 0
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

// ErrProblems is what doctor ends with if there are problems.
var ErrProblems = errors.New("this node has problems: see above")

func (r *Report) err() error {
	if r.OK {
		return nil
	}
	return ErrProblems
}

func (r *Report) write(w io.Writer) error {
	for _, f := range r.Findings {
		if _, err := fmt.Fprintf(w, "%-8s %-22s %s\n", f.Status, f.Check, output.Clean(f.Found)); err != nil {
			return err
		}
		for _, line := range [][2]string{{"", f.Meaning}, {"to do: ", f.Remedy}} {
			if line[1] == "" {
				continue
			}
			if _, err := fmt.Fprintf(w, "%-8s %s%s\n", "", line[0], output.Clean(line[1])); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "%s, %s, %d not known\n", output.Count(r.count(Problem), "problem"), output.Count(r.count(Warning), "warning"), r.count(Unknown))
	return err
}

func ok(check, format string, args ...any) Finding {
	return Finding{Check: check, Status: OK, Found: fmt.Sprintf(format, args...)}
}
