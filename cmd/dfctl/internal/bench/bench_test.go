package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/bench"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

func run(t *testing.T, con *outputtest.Console, runner bench.Runner, args ...string) error {
	t.Helper()
	root := &cobra.Command{Use: "dfctl", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(bench.Command(con.Console, runner))
	root.SetErr(&bytes.Buffer{})
	root.SetArgs(append([]string{"bench"}, args...))
	return root.ExecuteContext(t.Context())
}

func tree(t *testing.T, files map[string]int) string {
	t.Helper()
	dir := t.TempDir()
	for name, size := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.Repeat([]byte{1}, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFSComparesTwoDirectories(t *testing.T) {
	files := map[string]int{"a/x": 100_000, "a/y": 5000, "z": 1, "empty": 0, "huge": 2 << 20}
	one, two := tree(t, files), tree(t, files)
	con := outputtest.New("")
	if err := run(t, con, nil, "fs", "--repeat", "2", "--bytes", "1MiB", one, two, "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var r bench.FS
	if err := json.Unmarshal(con.Stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	// What is empty, or beyond the limit, is not read; the directories count.
	if r.Files != 3 || r.Bytes != 105_001 || r.Entries != 7 || len(r.Tests) != 4 {
		t.Errorf("printed %+v", r)
	}
	for _, x := range r.Tests {
		if len(x.Rates) != 2 || x.Rates[0] <= 0 || x.Rates[1] <= 0 || x.Ratio != x.Rates[1]/x.Rates[0] || x.Cold {
			t.Errorf("test %+v", x)
		}
	}
	con = outputtest.New("")
	if err := run(t, con, nil, "fs", "--repeat", "1", one); err != nil {
		t.Fatal(err)
	}
	out := con.Stdout.String()
	for _, want := range []string{"4 files of 2.1 MiB, 7 entries; medians of 1\n", "TEST", "sequential  warm   MiB/s"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "RATIO") {
		t.Errorf("a ratio of one directory:\n%s", out)
	}
}

func TestFSErrors(t *testing.T) {
	one, other, longer := tree(t, map[string]int{"a": 10}), tree(t, map[string]int{"b": 10}), tree(t, map[string]int{"a": 11})
	for want, args := range map[string][]string{
		"do not have the same files: lstat":             {one, other},
		"a has 10 bytes in the first, 11 in the second": {one, longer},
		"no files to read":                              {t.TempDir()},
		"no such file":                                  {one + "/absent"},
		"--repeat 0: at least 1":                        {one, "--repeat", "0"},
		"--bytes: at least 1MiB":                        {one, "--bytes", "1KiB"},
		"accepts between 1 and 2 arg(s), received 3":    {one, one, one},
	} {
		if err := run(t, outputtest.New(""), nil, append([]string{"fs"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// ctr is a fake; each reading of the clock is a second later.
func TestPull(t *testing.T) {
	var calls []string
	fail := ""
	ctr := func(_ context.Context, name string, args ...string) error {
		call := name + " " + strings.Join(args, " ")
		calls = append(calls, call)
		if fail != "" && strings.Contains(call, fail) {
			return errors.New("it failed")
		}
		return nil
	}
	con := outputtest.New("")
	con.Step = time.Second
	if err := run(t, con, ctr, "pull", "r.local/app:v1", "--repeat", "2", "--address", "/c.sock", "--hosts-dir", "", "--plain-http"); err != nil {
		t.Fatal(err)
	}
	out := con.Stdout.String()
	for _, want := range []string{"r.local/app:v1, 2 pulls with each\n", "damselfly    2.000 s  2.000 s  1.000 s  1.000 s", "overlayfs    2.000 s"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
	const ctrCall = "ctr --address /c.sock --namespace damselfly-bench images "
	if len(calls) != 16 || calls[0] != ctrCall+"pull --snapshotter damselfly --plain-http r.local/app:v1" ||
		!strings.HasPrefix(calls[1], ctrCall+"mount --snapshotter damselfly r.local/app:v1 ") ||
		!strings.HasPrefix(calls[2], ctrCall+"unmount --snapshotter damselfly --rm ") || calls[3] != ctrCall+"rm --sync r.local/app:v1" {
		t.Errorf("calls:\n%s", strings.Join(calls, "\n"))
	}
	con.Stdout.Reset()
	if err := run(t, con, ctr, "pull", "r.local/app:v1", "--snapshotter", "x", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var p bench.Pull
	if err := json.Unmarshal(con.Stdout.Bytes(), &p); err != nil || len(p.Snapshotters) != 1 || len(p.Snapshotters[0].Runs) != 5 || p.Snapshotters[0].Median != 2 {
		t.Errorf("printed %+v, %v", p, err)
	}
	for _, fail = range []string{"images pull", "images mount"} {
		calls = nil
		err := run(t, con, ctr, "pull", "r.local/app:v1")
		if err == nil || !strings.Contains(err.Error(), "pull r.local/app:v1 with damselfly: it failed") {
			t.Errorf("%s: %v", fail, err)
		}
		if !strings.Contains(calls[len(calls)-1], "images rm") {
			t.Errorf("%s: the image was left: %v", fail, calls)
		}
	}
}
