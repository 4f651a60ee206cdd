package output_test

import (
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB",
		1 << 20: "1.0 MiB", 3 << 30: "3.0 GiB", math.MaxInt64: "8.0 EiB", -5: "-5 B",
	} {
		if got := output.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPercentIsWholeOnlyAtTheEnd(t *testing.T) {
	for _, tt := range []struct {
		done, total int64
		want        int
	}{{0, 10, 0}, {5, 10, 50}, {999_999, 1_000_000, 99}, {10, 10, 100}, {0, 0, 100}, {math.MaxInt64 - 1, math.MaxInt64, 99}, {-1, 10, 0}} {
		if got := output.Percent(tt.done, tt.total); got != tt.want {
			t.Errorf("Percent(%d, %d) = %d, want %d", tt.done, tt.total, got, tt.want)
		}
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1234 * time.Millisecond: "1.2s", 83 * time.Second: "1m23s",
		3*time.Hour + 5*time.Minute + 9*time.Second: "3h5m", 72 * time.Hour: "3d",
	} {
		if got := output.Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, at := range map[string]time.Time{"never": {}, "now": now.Add(time.Hour), "1m30s ago": now.Add(-90500 * time.Millisecond)} {
		if got := output.Ago(now, at); got != want {
			t.Errorf("Ago(%v) = %q, want %q", at, got, want)
		}
	}
}

func TestTableCannotBeBroken(t *testing.T) {
	table := output.NewTable("NAME", "STATE")
	table.Add("a\tb\nc", "")
	table.Add("\x1b[31mred", "ok")
	table.Add("\xff", "ü")
	var b strings.Builder
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := "NAME      STATE\na b c     -\n\uFFFD[31mred  ok\n\uFFFD         ü\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
}

func TestFormat(t *testing.T) {
	var f output.Format
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	f.AddFlag(fs)
	if f != output.Text {
		t.Errorf("default %q", f)
	}
	if err := fs.Parse([]string{"-o", "yaml"}); err == nil {
		t.Error("accepts yaml")
	}
	if err := fs.Parse([]string{"-o", "json"}); err != nil || f != output.JSON {
		t.Errorf("json: %q, %v", f, err)
	}
	con := outputtest.New("")
	if err := con.Print(f, map[string]string{"a": "<b>"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := con.Stdout.String(); got != "{\n  \"a\": \"<b>\"\n}\n" {
		t.Errorf("JSON %q", got)
	}
}

func TestPrintReportsFailure(t *testing.T) {
	con := outputtest.New("")
	err := con.Print(output.Text, nil, func(io.Writer) error { return os.ErrClosed })
	if err == nil || !strings.Contains(err.Error(), "print the result") {
		t.Errorf("error %v", err)
	}
}

// A row goes from half to the end in two seconds.
func advance(con *outputtest.Console, p *output.Progress) {
	row := output.Row{Name: "model.bin", Done: 50 << 20, Total: 100 << 20}
	p.Update(row)
	for range 4 {
		con.Time = con.Time.Add(500 * time.Millisecond)
		row.Done += 10 << 20
		p.Update(row)
	}
	row.Done = row.Total
	p.Finish(row)
}

func TestProgressOnATerminal(t *testing.T) {
	con := outputtest.New("")
	con.Columns = 80
	advance(con, con.NewProgress(false))
	frames := strings.Split(con.Stderr.String(), "\x1b[1A")
	if len(frames) < 5 {
		t.Fatalf("drawn %d times", len(frames))
	}
	const want = "\rmodel.bin  [============>     ]   70%  70.0 MiB / 100.0 MiB  20.0 MiB/s  ETA 2s\x1b[K\n\x1b[J"
	if got := frames[2]; got != want {
		t.Errorf("frame\n%q, want\n%q", got, want)
	}
	if last := frames[len(frames)-1]; !strings.Contains(last, "100%") || strings.Contains(last, "ETA") {
		t.Errorf("last frame %q", last)
	}
}

func TestProgressFitsTheTerminal(t *testing.T) {
	for _, columns := range []int{1, 2, 10, 40, 60, 200} {
		con := outputtest.New("")
		con.Columns = columns
		p := con.NewProgress(false)
		p.Finish(output.Row{Name: strings.Repeat("näme", 20), Done: 1, Total: 2, Note: "failed"})
		line, _, _ := strings.Cut(strings.TrimPrefix(con.Stderr.String(), "\r"), "\x1b")
		if n := len([]rune(line)); n >= columns && columns > 1 {
			t.Errorf("%d columns: %d wide: %q", columns, n, line)
		}
	}
}

func TestProgressInALog(t *testing.T) {
	con := outputtest.New("")
	p := con.NewProgress(false)
	advance(con, p) // too short for a line in between
	con.Time = con.Time.Add(time.Minute)
	p.Update(output.Row{Name: "other", Done: 1 << 20})
	want := "model.bin: 100%, 100.0 MiB of 100.0 MiB, 25.0 MiB/s\nother: 1.0 MiB\n"
	if got := con.Stderr.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestSilentProgress(t *testing.T) {
	con := outputtest.New("")
	con.Columns = 80
	advance(con, con.NewProgress(true))
	if con.Stderr.Len() > 0 {
		t.Errorf("wrote %q", &con.Stderr)
	}
}

func TestSystemConsoleIsNoTerminalInTests(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	old := os.Stderr
	os.Stderr = f
	defer func() { os.Stderr = old }()
	if w := output.System().Width(); w != 0 {
		t.Errorf("a file is %d columns wide", w)
	}
}
