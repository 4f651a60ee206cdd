package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

// TestMain lets the test binary be the processes that benchmarks start from
// their own executable.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == makeCommand || os.Args[1] == openCommand) {
		os.Exit(program.ExitCode(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
	}
	os.Exit(m.Run())
}

func TestParseOptions(t *testing.T) {
	o, err := parseOptions(strings.Fields("-mode next,sweep -images golang,/a/node/oci -repeat 2 -work w -peer p -plots d"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%v %v %d %s%s", o.modes, o.images, o.repeat, o.peer, o.plots) != "[next sweep] [golang /a/node/oci] 2 pd" || o.work != "w" {
		t.Errorf("got %+v", o)
	}
	for args, want := range map[string]error{
		"-mode next,nothing":          program.ErrUsage,
		"-mode=":                      program.ErrUsage,
		"-repeat 0":                   program.ErrUsage,
		"-files 10":                   program.ErrUsage,
		"-images golang,/tmp/golang/": program.ErrUsage,
		"-unknown":                    program.ErrUsage,
		"more":                        program.ErrUsage,
		"-help":                       flag.ErrHelp,
	} {
		var stderr bytes.Buffer
		if _, err := parseOptions(strings.Fields(args), &stderr); !errors.Is(err, want) || stderr.Len() == 0 {
			t.Errorf("%s: %v, told %q", args, err, &stderr)
		}
	}
}

func TestShortNames(t *testing.T) {
	for path, want := range map[string]string{"golang": "golang", "/a/node/oci": "node", "/a/node/": "node", "oci": "oci", "./x/oci/": "x"} {
		if got := shortName(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestMedians(t *testing.T) {
	got := medianUse([]use{{3, 30, 1}, {1, 20, 3}, {2, 10, 2}})
	if want := (use{2, 20, 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	opened := medianOpened([]opened{
		{Entries: 9, DecodeMS: 1, MergeMS: 5, EROFSMS: 9, TotalMS: 15, CPUMS: 4, HeapBytes: 7, PeakRSS: 1, ImageBytes: 2},
		{Entries: 9, DecodeMS: 2, MergeMS: 4, EROFSMS: 8, TotalMS: 14, CPUMS: 6, HeapBytes: 6, PeakRSS: 3, ImageBytes: 2},
		{Entries: 9, DecodeMS: 3, MergeMS: 6, EROFSMS: 7, TotalMS: 16, CPUMS: 5, HeapBytes: 5, PeakRSS: 2, ImageBytes: 2},
	})
	want := opened
	want.DecodeMS, want.MergeMS, want.EROFSMS, want.TotalMS, want.CPUMS, want.HeapBytes, want.PeakRSS = 2, 5, 8, 15, 5, 7, 3
	if opened != want {
		t.Errorf("got %+v, want %+v", opened, want)
	}
	if percent(1, 0) != 0 || percent(1, 4) != 25 || mbPerSecond(3e6, 2) != 1.5 || mbPerSecond(1, 0) != 0 {
		t.Error("ratios")
	}
}

func TestSettings(t *testing.T) {
	all := settings()
	if all[0] != defaults() {
		t.Errorf("first is %v", all[0])
	}
	seen := map[setting]bool{}
	for _, s := range all {
		if seen[s] {
			t.Errorf("%v is there twice", s)
		}
		seen[s] = true
		if args := strings.Join(s.args(), " "); strings.Contains(args, "--inline 0") || strings.Contains(args, "--level") != (s.Codec == codecZstd) {
			t.Errorf("%v: arguments %s", s, args)
		}
	}
	s := setting{ChunkKiB: 512, GroupKiB: 2048, Codec: codecZstd, Level: 3}
	if got := s.sizes() + " " + s.codec(); got != "512K / 2M zstd 3" {
		t.Errorf("named %s", got)
	}
}

// sampleSweep has results that lie close to each other.
func sampleSweep(image string) []sweepResult {
	var all []sweepResult
	for i, s := range settings() {
		all = append(all, sweepResult{
			Image: image, setting: s, SizePercent: 90 + float64(i%3), ColdBytes: int64(4e6 + i*1e4),
			conversion: conversion{MBPerCore: float64(100 - i)},
		})
	}
	return all
}

func TestTables(t *testing.T) {
	c := conversion{use: use{Seconds: 10, CPUSeconds: 20, PeakRSS: 128 << 20}, ImageBytes: 400e6, TarBytes: 1000e6, PlainBytes: 990e6, IndexBytes: 1e6, BlobBytes: 379e6}
	r := result{
		Metadata: []metadataResult{{Files: 1000, opened: opened{TotalMS: 12.5, HeapBytes: 3 << 20}}},
		Convert: []convertResult{{
			Image: "a", Damselfly: c, FromTar: c, SizePercent: 95, Speedup: 9.5,
			Peer: &peerConversion{use: use{Seconds: 95, CPUSeconds: 150}, LayerBytes: 410e6},
		}},
		Next:  []nextResult{{Image: "a", Percent: 5, First: 380e6, Next: 19e6, ExtraPercent: 5}},
		Sweep: sampleSweep("a"),
	}
	var out bytes.Buffer
	r.table(&out)
	for _, want := range []string{"1000 files", "12.5", "tar 1000 MB, gzip 400 MB", "95.0 %", "client only", "102.5 %", "9.5 x", "5.0 %", "512K", "zstd 1", "none", "default"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
	out.Reset()
	if (&result{}).table(&out); out.Len() != 0 {
		t.Errorf("nothing is shown as %q", &out)
	}
}

func TestPlots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plots")
	if err := drawSweep(dir, "svg", append(sampleSweep("a"), sampleSweep("b")...)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"sizes-a.svg": "512K / 2M", "sizes-b.svg": "cold start", "levels.svg": "(default)"} {
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(p, []byte(want)) {
			t.Errorf("%s: %q is missing", name, want)
		}
	}
}

func TestSynthesisIsValid(t *testing.T) {
	layers, err := newSynthesis(512<<10, 1<<20).image(3000)
	if err != nil {
		t.Fatal(err)
	}
	var trees []*chunkfmt.Tree
	for i, x := range layers {
		p, err := chunkfmt.Encode(x)
		if err != nil {
			t.Fatal(err)
		}
		got, err := chunkfmt.Decode(p, chunkfmt.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		trees = append(trees, &got.Tree)
	}
	merged, err := chunkfmt.Merge(trees...)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(merged.Entries); n < 3000 || n > 4500 {
		t.Errorf("%d entries of 3000 files", n)
	}
	if _, err := merged.Resolve(filePath(0)); err == nil {
		t.Error("what the upper layer removed is there")
	}
}

func TestBlobTable(t *testing.T) {
	s := newSynthesis(512<<10, 1<<20)
	b := &blobTable{groupSize: 1 << 20, digest: s.digest}
	for _, n := range []int64{100, 512 << 10, 512 << 10, 5000} {
		b.add(n)
	}
	blob := b.finish()
	var got []string
	for _, c := range b.chunks {
		got = append(got, fmt.Sprintf("%d+%d", c.Group, c.Offset))
	}
	// The third does not fit behind the second.
	if want := "[0+0 0+4096 1+0 1+524288]"; fmt.Sprint(got) != want {
		t.Errorf("chunks at %v, want %s", got, want)
	}
	if len(blob.Groups) != 2 || blob.Groups[1].Device != 528384 || blob.Groups[1].Plain != 524288+5000 || blob.DeviceSize != 528384+532480 {
		t.Errorf("blob %+v", blob)
	}
	if blob.Size != int64(blob.Groups[0].Stored)+int64(blob.Groups[1].Stored) || blob.Groups[1].Offset != int64(blob.Groups[0].Stored) {
		t.Errorf("groups do not tile the blob: %+v", blob)
	}
}

// tinyLayout makes an image of one gzip layer whose command is one of its
// files.
func tinyLayout(t *testing.T) string {
	t.Helper()
	var tarred bytes.Buffer
	w := tar.NewWriter(&tarred)
	random := rand.NewChaCha8([32]byte{7})
	for i := range 200 {
		content := make([]byte, i*50)
		if _, err := random.Read(content[:len(content)/2]); err != nil {
			t.Fatal(err)
		}
		err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("bin/f%d", i), Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))})
		if _, err2 := w.Write(content); err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tarred.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture, config.Config.Cmd = "linux", "amd64", []string{"/bin/f100"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tiny")
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"})); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRun is a benchmark in its smallest form.
func TestRun(t *testing.T) {
	testenv.Integration(t)
	testenv.Tool(t, "go")
	testenv.Tool(t, "gzip")
	work, plots := t.TempDir(), t.TempDir()
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"-images", tinyLayout(t), "-repeat", "1", "-files", "10000", "-work", work, "-plots", plots}, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var r result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, &stdout)
	}
	if len(r.Metadata) != 2 || len(r.Convert) != 1 || len(r.Next) != 1 || len(r.Sweep) != len(settings()) {
		t.Fatalf("got %s", &stdout)
	}
	c, n, m := r.Convert[0], r.Next[0], r.Metadata[1]
	if c.Image != "tiny" || c.Damselfly.PeakRSS == 0 || c.Damselfly.CPUSeconds == 0 || c.Damselfly.stored() == 0 || c.FromTar.stored() != c.Damselfly.stored() {
		t.Errorf("conversion %+v", c)
	}
	if n.Next == 0 || n.Next >= n.Alone || n.ExtraPercent > 50 {
		t.Errorf("next version %+v", n)
	}
	if m.Files != 10000 || m.Entries < 10000 || m.TotalMS == 0 || m.HeapBytes == 0 || m.PeakRSS < m.HeapBytes/2 || m.ImageBytes == 0 {
		t.Errorf("opening %+v", m)
	}
	for _, s := range r.Sweep {
		if s.ColdBytes == 0 || s.ColdBytes > s.stored() {
			t.Errorf("%v: a cold start fetches %d bytes of %d", s.setting, s.ColdBytes, s.stored())
		}
	}
	if left, err := filepath.Glob(filepath.Join(work, "*")); err != nil || len(left) != 1 {
		t.Errorf("left in the work directory: %v, %v", left, err)
	}
}
