package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/perf/internal/program"
)

func TestOptions(t *testing.T) {
	for text, want := range map[string]string{
		"": "complete,throughput,latency,containers,mounts,second erofs,fuse", "-mode mounts,second -backends fuse": "mounts,second fuse",
		"-image mine=/x": "complete,throughput,latency,containers,mounts,second erofs,fuse",
	} {
		var stderr bytes.Buffer
		o, err := parseOptions(strings.Fields(text), &stderr)
		if err != nil {
			t.Errorf("%q: %v, %s", text, err, &stderr)
			continue
		}
		if got := strings.Join(o.modes, ",") + " " + strings.Join(o.backends, ","); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"-mode all":               "use complete",
		"-mode mounts,mounts":     "twice",
		"-backends overlayfs":     "use erofs, fuse",
		"-image other":            "no such image",
		"-image =/x":              "needs a name",
		"-rate none":              "must limit",
		"-repeat 0":               "at least 1",
		"-containers 0 -mounts 1": "at least 1",
		"-timeout 0s":             "positive",
		"rest":                    "unexpected argument",
	} {
		var stderr bytes.Buffer
		if _, err := parseOptions(strings.Fields(text), &stderr); !errors.Is(err, program.ErrUsage) || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: %v, %s, want %q", text, err, &stderr, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.2: 1, 0.5: 3, 0.81: 5, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := median([]float64{4, 1, 3, 2}); got != 2 {
		t.Errorf("the median is %v, want the lower middle", got)
	}
	if !math.IsNaN(median(nil)) {
		t.Error("there is a median of nothing")
	}
}

func TestResult(t *testing.T) {
	r := newResult(&options{image: "golang", rate: 1e9, repeat: 3, log: func(string, ...any) {}})
	r.add(figure{Mode: "complete", With: erofs, Name: "reads", Unit: "MB/s", Values: []float64{90, 200, 110}, Against: "ext4", References: []float64{100, 100, 100}, Goal: atLeast(0.95)})
	r.add(figure{Mode: "mounts", With: fuse, Name: "RSS", Unit: "MiB", Values: []float64{301}, Goal: atMost(300)})
	r.add(figure{Mode: "mounts", Name: "descriptors", Values: []float64{7}})
	reads, rss, open := r.Figures[0], r.Figures[1], r.Figures[2]
	if reads.Value != 110 || reads.Ratio != 1.1 || !*reads.Reached || *rss.Reached || open.Reached != nil {
		t.Errorf("%+v, %+v, %+v", reads, rss, open)
	}
	var text strings.Builder
	r.table(&text)
	for _, want := range []string{">= 0.95", "reached", "<= 300", "missed", "medians of 3", "1gbit"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &text)
		}
	}
	if document, err := json.Marshal(r); err != nil || !bytes.Contains(document, []byte(`"goal":{"at_most":300},"reached":false`)) {
		t.Errorf("%v, %s", err, document)
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"a": 3, "b": 5, "empty": 0} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "again")), os.Symlink("b", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	tr, err := listTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.entries) != 6 || len(tr.files) != 2 || tr.bytes != 8 || tr.files[0].size != 5 {
		t.Errorf("%+v", tr)
	}
	for n, want := range map[int64]int{1: 1, 5: 1, 6: 2, 100: 2} {
		if got := len(tr.largest(n)); got != want {
			t.Errorf("%d files have %d bytes, want %d", got, n, want)
		}
	}
	for name, w := range map[string]work{"through": readThrough(tr.files, 2), "anywhere": readAnywhere(tr.files, 4, 10), "stat": statAll(tr), "find": find(tr)} {
		if amount, err := w(t.Context(), dir); err != nil || amount <= 0 {
			t.Errorf("%s: %v, %v", name, amount, err)
		}
	}
	if _, err := readThrough([]entry{{"a", 4}}, 2)(t.Context(), dir); err == nil {
		t.Error("a file of another size was accepted")
	}
}

func TestBlobBytes(t *testing.T) {
	const log = `10.77.0.3 - - [21/Nov/2026:04:00:00 +0000] "GET /v2/golang/blobs/sha256:aa HTTP/1.1" 206 1000 "" "Go-http-client/1.1"
10.77.0.3 - - [21/Nov/2026:04:00:00 +0000] "GET /v2/golang/blobs/sha256:bb HTTP/1.1" 200 24 "" "Go-http-client/1.1"
10.77.0.3 - - [21/Nov/2026:04:00:00 +0000] "HEAD /v2/golang/blobs/sha256:bb HTTP/1.1" 200 24 "" "Go-http-client/1.1"
10.77.0.3 - - [21/Nov/2026:04:00:00 +0000] "GET /v2/golang/blobs/sha256:cc HTTP/1.1" 404 157 "" "Go-http-client/1.1"
10.77.0.3 - - [21/Nov/2026:04:00:00 +0000] "GET /v2/golang/manifests/sha256:dd HTTP/1.1" 200 500 "" "Go-http-client/1.1"
time="2026-11-21T04:00:00Z" level=error msg="unknown blob"
`
	if got, err := blobBytes(strings.NewReader(log)); err != nil || got != 1024 {
		t.Errorf("%d bytes, %v, want 1024", got, err)
	}
}

func TestImageOf(t *testing.T) {
	img, err := imageOf(small(3))
	if err != nil {
		t.Fatal(err)
	}
	one, err := describe(img)
	if err != nil {
		t.Fatal(err)
	}
	other, err := imageOf(small(4))
	if err != nil {
		t.Fatal(err)
	}
	two, err := describe(other)
	if err != nil {
		t.Fatal(err)
	}
	if one.manifest == two.manifest || one.chain == two.chain || one.chain != one.layers[0].Digest {
		t.Errorf("%+v, %+v", one, two)
	}
}

func TestCPUTimes(t *testing.T) {
	got, err := parseCPUTimes("cpu  1 2 3 40 5 6 7 8 100 200\ncpu0 9\n")
	if err != nil || got != (cpuTimes{idle: 45, all: 72}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "cpu 1 2\n", "cpu 1 2 3 x 5 6 7 8\n"} {
		if _, err := parseCPUTimes(text); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}
