package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// What became of a file, or how it stands.
const (
	resultWritten   = "written"
	resultUnchanged = "already in force"
	resultForeign   = "already names the mirror, not by setup"
	resultRestored  = "restored"
	resultDeleted   = "deleted"
	resultCut       = "our part taken out, later edits kept"
	resultKept      = "kept, in use by another runtime"
	resultInForce   = "in force"
	resultEdited    = "in force, edited since setup"
	resultLost      = "changed since setup, the mirror may be missing"
	resultGone      = "deleted since setup"
)

// Report is what a node command did or found; -o json prints it as it is.
type Report struct {
	Action   string       `json:"action"` // setup, status or remove
	OK       bool         `json:"ok"`
	DryRun   bool         `json:"dry_run,omitempty"` // files tell what would be done
	Runtimes []string     `json:"runtimes"`
	Mirror   string       `json:"mirror,omitempty"` // HOST:PORT
	Files    []FileReport `json:"files"`
	// Restart lists the commands to run before the files take effect.
	Restart []string `json:"restart"`
	Health  *Health  `json:"mirror_health,omitempty"`
	Notes   []string `json:"notes"`
}

// FileReport is one configuration file.
type FileReport struct {
	Path       string   `json:"path"`
	Runtimes   []string `json:"runtimes"`
	Registries []string `json:"registries"`
	Result     string   `json:"result"`
}

// Health is the mirror's answer to GET /v2/.
type Health struct {
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // HTTP status or error
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *Report) restart(command string) {
	if command != "" && !slices.Contains(r.Restart, command) {
		r.Restart = append(r.Restart, command)
	}
}

func (r *Report) addFile(d *disk, path string, runtimes, registries []string, result string) {
	r.Files = append(r.Files, FileReport{Path: d.abs(path), Runtimes: runtimes, Registries: registries, Result: result})
	for _, name := range runtimes {
		if !slices.Contains(r.Runtimes, name) {
			r.Runtimes = append(r.Runtimes, name)
		}
	}
}

func (r *Report) addUndo(d *disk, u undo) {
	result := resultRestored
	switch {
	case len(u.keep) > 0:
		result = resultKept
	case !u.base.Exists:
		result = resultDeleted
	case !u.base.original:
		result = resultCut
	}
	r.addFile(d, u.rec.Path, u.rec.Runtimes, u.rec.Registries, result)
	if result != resultKept {
		r.restart(u.rec.Restart)
	}
}

// setupReport tells what setup did, or with dryRun what it would do.
func (n *node) setupReport(ctx context.Context, req request, w *work) *Report {
	rep := &Report{Action: "setup", OK: true, DryRun: req.dryRun, Mirror: req.mirror, Notes: w.plan.notes}
	for _, s := range w.steps {
		result := resultUnchanged
		switch {
		case s.foreign:
			result = resultForeign
		case s.write:
			result = resultWritten
		}
		rep.addFile(n.disk, s.path, []string{req.runtime}, s.registries, result)
		if s.write {
			rep.restart(s.restart)
		} else if s.restart != "" && !s.foreign {
			rep.restart(s.restart + ", unless done since it was written")
		}
	}
	for _, u := range w.stale {
		rep.addUndo(n.disk, u)
	}
	rep.Health = n.probe(ctx, req.mirror)
	if !rep.Health.OK {
		rep.note("the mirror does not answer; until it does, pulls go to the upstream registries")
	}
	return rep
}

// within says whether path lies below dir.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// print writes the report for people or as one JSON document.
func (r *Report) print(out io.Writer, format string) error {
	if format == "json" {
		return r.printJSON(out)
	}
	var b strings.Builder
	for _, f := range r.Files {
		result := f.Result
		if r.DryRun {
			result = "would be: " + result
		}
		fmt.Fprintf(&b, "%s: %s: %s", strings.Join(f.Runtimes, ", "), f.Path, result)
		if len(f.Registries) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(f.Registries, ", "))
		}
		b.WriteByte('\n')
	}
	if r.Health != nil {
		word := "answers"
		if !r.Health.OK {
			word = "does not answer"
		}
		fmt.Fprintf(&b, "mirror %s %s: %s\n", r.Mirror, word, r.Health.Detail)
	}
	if len(r.Files) > 0 {
		restart := "nothing"
		if len(r.Restart) > 0 {
			restart = strings.Join(r.Restart, "; ")
		}
		fmt.Fprintf(&b, "to restart: %s\n", restart)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", note)
	}
	_, err := io.WriteString(out, b.String())
	return wrapPrint(err)
}

func (r *Report) printJSON(out io.Writer) error {
	doc := *r
	// Lists are never null, so that scripts can loop over them.
	doc.Runtimes = slices.Concat([]string{}, r.Runtimes)
	doc.Restart = slices.Concat([]string{}, r.Restart)
	doc.Notes = slices.Concat([]string{}, r.Notes)
	doc.Files = slices.Concat([]FileReport{}, r.Files)
	for i := range doc.Files {
		doc.Files[i].Registries = slices.Concat([]string{}, doc.Files[i].Registries)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return wrapPrint(enc.Encode(doc))
}

func wrapPrint(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(errors.New("print report"), err)
}
