package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

// TestMain lets the test binary be the object server that benchmarks start from
// their own executable.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		os.Exit(program.ExitCode(run(context.Background(), os.Args[1:], io.Discard, os.Stderr), os.Stderr))
	}
	os.Exit(m.Run())
}

// TestDistribute is a benchmark in its smallest form.
func TestDistribute(t *testing.T) {
	testenv.Integration(t)
	testenv.Netns(t) // proves that namespaces can be made here
	for _, tool := range []string{"go", "tc", "nsenter"} {
		testenv.Tool(t, tool)
	}
	t.Setenv("TMPDIR", t.TempDir())
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), strings.Fields("-nodes 2 -zones 2 -rate 1gbit -size 4MiB -warm"), &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var d distribution
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
		t.Fatalf("%v in %s", err, &stdout)
	}
	if d.Median.FailedNodes != 0 || len(d.Runs) != 1 || len(d.Runs[0].Nodes) != 2 || d.Plain == nil {
		t.Errorf("got %s", &stdout)
	}
	if d.Median.OriginBytes < 4<<20 || d.Runs[0].Warm.Summary.OriginBytes != 0 {
		t.Errorf("from the origin: %d bytes, then %d", d.Median.OriginBytes, d.Runs[0].Warm.Summary.OriginBytes)
	}
	entries, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "damselfly-") {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// TestScale is the benchmark of the supernode alone in its smallest form.
func TestScale(t *testing.T) {
	testenv.Integration(t)
	testenv.Tool(t, "go")
	t.Setenv("TMPDIR", t.TempDir())
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), strings.Fields("-mode scale -peers 5 -tasks 3 -per-peer 2 -size 64KiB -settle 100ms"), &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var s scale
	if err := json.Unmarshal(stdout.Bytes(), &s); err != nil || s.Active.RSS == 0 || s.Peers != 5 {
		t.Errorf("got %s, %v", &stdout, err)
	}
}

func TestOptions(t *testing.T) {
	for _, args := range []string{
		"-mode fast", "-nodes 0", "-zones 9", "-rate 5", "-size -1", "-kill cat", "-kill node -nodes 1", "-mode scale -warm",
		"-mode latency -nodes 3", "-mode latency -samples 1000", "-per-peer 3", "-mode scale -tasks 2 -per-peer 3", "extra", "-unknown",
	} {
		if _, err := parseOptions(strings.Fields(args), io.Discard); !errors.Is(err, program.ErrUsage) {
			t.Errorf("%s: %v", args, err)
		}
	}
	o, err := parseOptions(strings.Fields("-nodes 5 -zones 2 -rate 200mbit -size 1GiB -liar"), io.Discard)
	if err != nil || o.rate != 200e6 || o.size != 1<<30 || !o.baseline || !o.verify {
		t.Fatalf("got %+v, %v", o, err)
	}
	want := []netlab.HostSpec{
		{Name: "origin"}, {Name: "supernode"}, {Name: "liar"}, {Name: "node1", Zone: 1}, {Name: "node2", Zone: 2},
		{Name: "node3", Zone: 1}, {Name: "node4", Zone: 2}, {Name: "node5", Zone: 1},
	}
	if got := o.hosts(); !slices.Equal(got, want) {
		t.Errorf("hosts %v", got)
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{0: nil, 5: {5}, 2: {3, 2}, 3: {9, 1, 3}, 4: {4, 9, 1, 7}} {
		if got := median(values); got != want {
			t.Errorf("median of %v: %v", values, got)
		}
	}
	runs := make([]trial, 3)
	for i, last := range []float64{3, 1, 2} {
		runs[i].Summary.Last = last
	}
	if got := medianRun(runs).Summary.Last; got != 2 {
		t.Errorf("median run took %v", got)
	}
}

func TestCPUTimes(t *testing.T) {
	before, err := parseCPUTimes("cpu  100 1 50 800 40 5 4 0 0 0\ncpu0 1 1 1 1\n")
	if err != nil || before != (cpuTimes{idle: 840, all: 1000}) {
		t.Fatalf("got %+v, %v", before, err)
	}
	if got := (cpuTimes{idle: 865, all: 1100}).idlePercent(before); got != 25 {
		t.Errorf("idle %v %%", got)
	}
	if _, err := parseCPUTimes("cpu 1 2\n"); err == nil {
		t.Error("a short line was accepted")
	}
}

// exampleRound has a value of its own in each field that is printed.
func exampleRound() round {
	r := round{
		Origin: objectserver.Stats{Requests: map[string]int64{"blob": 4, "blob-head": 1}, Bytes: map[string]int64{"blob": 10 << 20}},
		Others: []process{{"supernode", 1.5, 1, 30 << 20}, {"origin", 0.25, 0.2, 9 << 20}},
		Links:  []link{{Host: "node1", SentUse: 0.5, ReceivedUse: 0.75}},
	}
	for i, s := range []sample{{0.1, 2, 8 << 20}, {0.3, 4, 8 << 20}, {0, 0, 0}} {
		n := node{sample: s, process: process{nodeName(i + 1), 0.5, 0.25, int64(20+i) << 20}, Uploaded: 3 << 20,
			From: map[string]int64{"peer": 6 << 20, "supernode": 2 << 20}, Rejected: map[string]int64{"digest": int64(i)}}
		r.Nodes = append(r.Nodes, n)
	}
	r.Nodes[2].Error = "refused"
	return r
}

func TestSummary(t *testing.T) {
	r := exampleRound()
	r.summarize(8<<20, 2, &sample{Seconds: 3.2})
	want := summary{
		First: 2, Last: 4, TTFBMedian: 0.1, TTFBMax: 0.3, ToBound: 2, ToPlain: 1.25,
		OriginRequests: 5, OriginBytes: 10 << 20, OriginCopies: 1.25, CPUPerGiB: 3 * 64,
		MaxNodeRSS: 22 << 20, SupernodeRSS: 30 << 20, FailedNodes: 1, RejectedPieces: 3,
	}
	if r.Summary != want {
		t.Errorf("got  %+v\nwant %+v", r.Summary, want)
	}
	d := &distribution{Runs: []trial{{round: r}}}
	if err := d.verdict(); err == nil || !strings.Contains(err.Error(), "run 1: node3: refused") {
		t.Errorf("verdict %v", err)
	}
	d.Runs[0].Nodes[2].Expected = true
	if err := d.verdict(); err != nil {
		t.Errorf("verdict on a node that was killed on purpose: %v", err)
	}
}

func TestTable(t *testing.T) {
	r := exampleRound()
	var out strings.Builder
	r.table(&out)
	var rows [][]string
	for line := range strings.Lines(out.String()) {
		rows = append(rows, strings.Fields(line))
	}
	if len(rows) != 6 {
		t.Fatalf("%d lines:\n%s", len(rows), out.String())
	}
	if want := strings.Fields("node1 0.100 2.000 6.0 2.0 0.0 3.0 50% 75% 0.50 0.25 20.0"); !slices.Equal(rows[1], want) {
		t.Errorf("row %v, want %v", rows[1], want)
	}
	if rows[3][2] != "failed" || rows[4][0] != "supernode" {
		t.Errorf("table\n%s", out.String())
	}
}

func TestMeterUsesMetrics(t *testing.T) {
	before := fleet.Metrics{`damselfly_piece_download_bytes_total{from="peer"}`: 100, `damselfly_piece_upload_bytes_total`: 7}
	after := fleet.Metrics{
		`damselfly_piece_download_bytes_total{from="peer"}`: 150, `damselfly_piece_download_bytes_total{from="supernode"}`: 30,
		`damselfly_piece_upload_bytes_total`: 17, `damselfly_piece_rejected_total{reason="digest"}`: 2,
	}
	var n node
	n.add(before, after)
	if n.From["peer"] != 50 || n.From["supernode"] != 30 || n.Uploaded != 10 || n.Rejected["digest"] != 2 {
		t.Errorf("got %+v", n)
	}
}

func TestDownload(t *testing.T) {
	const size = 1<<20 + 1
	dir := t.TempDir()
	digest, err := objectserver.WriteObject(dir, 7, size)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(objectserver.New(dir))
	defer srv.Close()
	halves := 0
	d := download{host: fleet.Local{}, url: srv.URL + "/files/" + digest, digest: digest, size: size, half: func() { halves++ }}
	got, err := d.run(t.Context())
	if err != nil || got.Bytes != size || got.TTFB <= 0 || got.Seconds < got.TTFB || halves != 1 {
		t.Errorf("got %+v, half reported %d times, %v", got, halves, err)
	}
	for name, wrong := range map[string]*download{
		"digest": {host: fleet.Local{}, url: d.url, digest: "sha256:" + strings.Repeat("0", 64), size: size},
		"size":   {host: fleet.Local{}, url: d.url, size: size - 1},
		"status": {host: fleet.Local{}, url: srv.URL + "/nothing", size: size},
	} {
		if _, err := wrong.run(t.Context()); err == nil {
			t.Errorf("a wrong %s was accepted", name)
		}
	}
}
