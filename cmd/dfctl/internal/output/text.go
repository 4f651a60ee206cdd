package output

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// Clean returns s on one line, with everything that is not a graphic character
// or a space replaced.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case r == utf8.RuneError, !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// Bytes returns a number of bytes as people read it, such as 1.5 GiB.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	// 1023.95 would be shown as 1024.0.
	for v >= 1023.95 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

// Percent returns done of total as a whole number that is 100 only when
// nothing is missing.
func Percent(done, total int64) int {
	switch {
	case done >= total:
		return 100
	case done <= 0:
		return 0
	}
	return min(99, int(float64(done)/float64(total)*100))
}

// Duration returns d rounded to what people care about.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Ago returns how long before now t was, "never" for the zero time.
func Ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if d := now.Sub(t); d >= time.Second {
		return Duration(d.Truncate(time.Second)) + " ago"
	}
	return "now"
}

// Count returns "1 task" or "2 tasks".
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Table is text in columns.
type Table struct {
	header []string
	rows   [][]string
}

// NewTable returns a table with the given column titles.
func NewTable(header ...string) *Table { return &Table{header: header} }

// Add appends a row. Empty cells are shown as "-".
func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// Len returns the number of rows.
func (t *Table) Len() int { return len(t.rows) }

// Write writes the title line and the rows.
func (t *Table) Write(w io.Writer) error {
	return writeColumns(w, append([][]string{t.header}, t.rows...))
}

// WriteFields writes a name and its value per line. Pairs without a value are
// left out.
func WriteFields(w io.Writer, pairs ...[2]string) error {
	var rows [][]string
	for _, p := range pairs {
		if p[1] != "" {
			rows = append(rows, []string{p[0] + ":", p[1]})
		}
	}
	return writeColumns(w, rows)
}

func writeColumns(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = Clean(cell); cells[i] == "" {
				cells[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(tw, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}
