package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/perf/internal/program"
)

func TestOptions(t *testing.T) {
	for text, want := range map[string]string{
		"": "overlayfs erofs", "-stargz /x": "overlayfs erofs stargz", "-with fuse": "fuse", "-with stargz -stargz /x": "stargz",
	} {
		var stderr bytes.Buffer
		o, err := parseOptions(strings.Fields(text), &stderr)
		if err != nil {
			t.Errorf("%q: %v, %s", text, err, &stderr)
			continue
		}
		if got := strings.Join(o.with, " "); got != want {
			t.Errorf("%q: contenders %s, want %s", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"-with nobody":             "use overlayfs",
		"-with fuse,fuse":          "twice",
		"-with stargz":             "needs -stargz",
		"-with erofs -stargz /x":   "needs -stargz",
		"-images other":            "no command is known",
		"-images golang,golang=/x": "twice",
		"-repeat 0":                "at least 1",
		"-timeout 0s":              "positive",
		"-rate fast":               "rate",
		"-command rustc":           "leaves none",
		"-containerd 1.7":          "use 2.3 or 2.4",
		"rest":                     "unexpected argument",
	} {
		var stderr bytes.Buffer
		if _, err := parseOptions(strings.Fields(text), &stderr); !errors.Is(err, program.ErrUsage) || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: %v, %s, want %q", text, err, &stderr, want)
		}
	}
}

// measured is a result of three rounds; figures of a start are all different.
func measured() *result {
	r := &result{Repeat: 3, Rate: "1gbit", Containerd: "2.3", Kernel: "6", CPUs: 2, linkSeconds: func(n int64) float64 { return float64(n) / 1e8 }}
	img := &image{name: "golang", layers: 300e6}
	for i, shift := range []float64{0.25, 0, 0.5} {
		n := int64(i + 1)
		for _, c := range commandsOf(img.name) {
			r.add(img, c, overlayfs, start{Pull: 9 + shift, Run: 0.125 + shift, Total: 9.5 + 2*shift, Warm: 0.0625 + shift, RegistryBytes: 310e6 + n, NodeBytes: 300e6 + n})
			r.add(img, c, "damselfly erofs, first node", start{Pull: 0.125 + shift, Run: 0.25 + shift, Total: 0.5 + 2*shift, Warm: 0.0625, RegistryBytes: 8e6 + n, NodeBytes: 7e6 + n})
		}
	}
	return r
}

func TestResult(t *testing.T) {
	r := measured()
	if len(r.Rows) != 4 {
		t.Fatalf("%d rows, want 2 commands with 2 contenders", len(r.Rows))
	}
	local, lazy := r.Rows[0], r.Rows[1]
	want := start{Pull: 9.25, Run: 0.375, Total: 10, Warm: 0.3125, RegistryBytes: 310e6 + 2, NodeBytes: 300e6 + 2}
	if local.Median != want || local.Fastest != 9.5 || local.Slowest != 10.5 || local.Bound != 0 || len(local.Starts) != 3 {
		t.Errorf("overlayfs: %+v", local)
	}
	if got, want := lazy.Bound, 0.3125+(7e6+2)/1e8+allowance; got != want {
		t.Errorf("bound %v, want %v", got, want)
	}
	var text strings.Builder
	r.table(&text)
	for _, want := range []string{"golang (300 MB)", "go run hello.go", "damselfly erofs, first node", "9.500–10.500", "medians of 3; containerd 2.3, links of 1gbit"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &text)
		}
	}
	if lines := strings.Count(text.String(), "\n"); lines != 7 {
		t.Errorf("%d lines:\n%s", lines, &text)
	}
	document, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(document), `"registry_sent_bytes":310000002`) {
		t.Errorf("%v, %s", err, document)
	}
}

func TestPlots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plots")
	if err := drawStarts(dir, "svg", measured()); err != nil {
		t.Fatal(err)
	}
	if err := drawStarts(dir, "png", measured()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "coldstart-golang.svg"))
	if err != nil || !bytes.Contains(text, []byte("10.00 s, 300.0 MB")) {
		t.Errorf("%v; %d bytes", err, len(text))
	}
}

func TestReadImage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hex := strings.Repeat("ab", 32)
	write("index.json", `{"manifests":[{"digest":"sha256:`+hex+`"}]}`)
	write("blobs/sha256/"+hex, `{"layers":[{"size":5},{"size":7}]}`)
	o := &options{}
	img, err := o.openImage(t.Context(), "python="+dir)
	if err != nil {
		t.Fatal(err)
	}
	if img.layers != 12 || img.ref() != "registry.test/python:latest" || img.estargzRef() != "registry.test/python:estargz" || len(img.commands) != 2 {
		t.Errorf("%+v", img)
	}
	for name, text := range map[string]string{"two images": `{"manifests":[{},{}]}`, "no JSON": `{`, "no digest": `{"manifests":[{"digest":"../../x"}]}`} {
		write("index.json", text)
		if _, err := o.openImage(t.Context(), "python="+dir); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
