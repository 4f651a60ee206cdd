package output

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// How often progress is shown, at most.
const (
	redrawEvery = 100 * time.Millisecond
	printEvery  = 5 * time.Second
)

// Row is the progress of one thing.
type Row struct {
	Name string
	// Done of Total bytes. A Total of 0 or less is not known yet.
	Done, Total int64
	// Note replaces rate and remaining time, such as "failed".
	Note string
}

// Progress shows rows as they advance. It is used by one goroutine.
type Progress struct {
	console *Console
	silent  bool
	shown   time.Time // last output
	lines   int       // on the terminal, above the cursor
	meters  map[string]*meter
}

// NewProgress returns a progress display; a silent one shows nothing.
func (c *Console) NewProgress(silent bool) *Progress {
	return &Progress{console: c, silent: silent, meters: map[string]*meter{}}
}

// Terminal says whether rows are redrawn in place. Elsewhere every row costs a
// line each time, so that few rows are better.
func (p *Progress) Terminal() bool { return p.console.Width() > 0 }

// Update shows the rows unless others were shown just before. Rows are told
// apart by name.
func (p *Progress) Update(rows ...Row) {
	if p.silent {
		return
	}
	now := p.console.Now()
	for _, r := range rows {
		p.meter(r).add(now, r.Done)
	}
	every := printEvery
	if p.Terminal() {
		every = redrawEvery
	} else if p.shown.IsZero() {
		p.shown = now // a short download needs no line before the last
	}
	if now.Sub(p.shown) >= every {
		p.show(now, rows)
	}
}

// Finish shows the rows for the last time and leaves them on the terminal.
func (p *Progress) Finish(rows ...Row) {
	if p.silent {
		return
	}
	now := p.console.Now()
	for _, r := range rows {
		p.meter(r).add(now, r.Done)
	}
	p.show(now, rows)
	p.lines = 0
}

func (p *Progress) meter(r Row) *meter {
	m := p.meters[r.Name]
	if m == nil {
		m = &meter{}
		p.meters[r.Name] = m
	}
	return m
}

func (p *Progress) show(now time.Time, rows []Row) {
	p.shown = now
	width := p.console.Width()
	var b strings.Builder
	if width == 0 {
		for _, r := range rows {
			b.WriteString(plainLine(r, p.meter(r)) + "\n")
		}
		_, _ = p.console.Err.Write([]byte(b.String())) // see Remarkf
		return
	}
	if p.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.lines)
	}
	for _, r := range rows {
		b.WriteString("\r" + barLine(r, p.meter(r), width-1) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	p.lines = len(rows)
	_, _ = p.console.Err.Write([]byte(b.String()))
}

// plainLine is a row for logs.
func plainLine(r Row, m *meter) string {
	parts := []string{Bytes(r.Done)}
	if r.Total > 0 {
		parts = []string{fmt.Sprintf("%d%%", Percent(r.Done, r.Total)), Bytes(r.Done) + " of " + Bytes(r.Total)}
	}
	return Clean(r.Name) + ": " + strings.Join(append(parts, state(r, m)...), ", ")
}

// barLine is a row for a terminal of the given width.
func barLine(r Row, m *meter, width int) string {
	const maxName, maxBar, minBar = 32, 30, 8
	right := Bytes(r.Done)
	if r.Total > 0 {
		right += " / " + Bytes(r.Total)
	}
	right = strings.Join(append([]string{right}, state(r, m)...), "  ")
	if r.Total > 0 {
		right = fmt.Sprintf("%3d%%  %s", Percent(r.Done, r.Total), right)
	}
	name := clip(Clean(r.Name), maxName)
	room := width - utf8.RuneCountInString(name) - utf8.RuneCountInString(right) - 2 // separators
	line := name
	if bar := min(room-2, maxBar); r.Total > 0 && bar >= minBar {
		line += "  " + drawBar(r, bar)
	}
	return clip(line+"  "+right, width)
}

func drawBar(r Row, width int) string {
	inner := width - 2
	full := inner * Percent(r.Done, r.Total) / 100
	head := ""
	if full < inner {
		head = ">"
	}
	return "[" + strings.Repeat("=", full) + head + strings.Repeat(" ", inner-full-len(head)) + "]"
}

func state(r Row, m *meter) []string {
	if r.Note != "" {
		return []string{Clean(r.Note)}
	}
	rate := m.rate()
	if rate <= 0 {
		return nil
	}
	parts := []string{Bytes(int64(rate)) + "/s"}
	if left := r.Total - r.Done; r.Total > 0 && left > 0 {
		eta := time.Duration(float64(left) / rate * float64(time.Second))
		parts = append(parts, "ETA "+Duration(eta.Round(time.Second)))
	}
	return parts
}

// clip shortens s to at most n runes and shows that it did.
func clip(s string, n int) string {
	if n <= 0 || utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// meter measures a rate over the last seconds. What was done before the first
// sample is not part of it, so that a resumed download does not look fast.
type meter struct {
	samples []sample
}

type sample struct {
	at   time.Time
	done int64
}

const (
	meterWindow = 10 * time.Second
	meterStep   = 250 * time.Millisecond
)

func (m *meter) add(now time.Time, done int64) {
	s := sample{now, done}
	n := len(m.samples)
	// The newest sample moves along until it is a step away from the one
	// before, which bounds their number.
	if n >= 2 && now.Sub(m.samples[n-2].at) < meterStep {
		m.samples[n-1] = s
		return
	}
	m.samples = append(m.samples, s)
	for len(m.samples) > 2 && now.Sub(m.samples[0].at) > meterWindow {
		m.samples = m.samples[1:]
	}
}

// rate returns bytes per second.
func (m *meter) rate() float64 {
	if len(m.samples) < 2 {
		return 0
	}
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	seconds := last.at.Sub(first.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(last.done-first.done) / seconds
}
