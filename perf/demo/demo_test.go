package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/perf/internal/program"
)

// TestDemo runs the demonstration with an image of a few MiB.
func TestDemo(t *testing.T) {
	testenv.Integration(t)
	testenv.Tool(t, "go")
	t.Setenv("TMPDIR", t.TempDir())
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"-o", "json", "-layer", "2MiB"}, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s%s", err, &stderr, &stdout)
	}
	var r report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, &stdout)
	}
	if !r.OK || len(r.Pulls) != 2 || len(r.Pulls[0].Nodes) != nodes {
		t.Errorf("got %+v", r)
	}
	for _, n := range r.Pulls[1].Nodes {
		if n.Peer+n.Supernode+n.Origin != 0 {
			t.Errorf("the warm pull of %s fetched %+v", n.Node, n)
		}
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "damselfly-") {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestOptions(t *testing.T) {
	for _, args := range []string{"-image BAD//x", "-o xml", "-layer much", "-layer 0", "extra", "-unknown"} {
		if _, err := parseOptions(strings.Fields(args), io.Discard); !errors.Is(err, program.ErrUsage) {
			t.Errorf("%s: %v", args, err)
		}
	}
	o, err := parseOptions(strings.Fields("-o json -layer 1MiB"), io.Discard)
	if err != nil || !o.json || o.layerSize != 1<<20 || o.reference != nil {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestSourceOfForeignImage(t *testing.T) {
	for image, want := range map[string]*source{
		"alpine":                {scheme: "https", host: "docker.io", repo: "library/alpine", ref: "latest"},
		"quay.io/org/app:1.2":   {scheme: "https", host: "quay.io", repo: "org/app", ref: "1.2"},
		"127.0.0.1:5000/app:v1": {scheme: "http", host: "127.0.0.1:5000", repo: "app", ref: "v1"},
		"localhost:5000/a/b:v2": {scheme: "http", host: "localhost:5000", repo: "a/b", ref: "v2"},
	} {
		o, err := parseOptions([]string{"-image", image}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		got, err := openSource(t.Context(), o, t.TempDir(), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if got.scheme != want.scheme || got.host != want.host || got.repo != want.repo || got.ref != want.ref {
			t.Errorf("%s: %s %s %s %s", image, got.scheme, got.host, got.repo, got.ref)
		}
	}
}

// TestPull pulls from the demonstration's own registry without a mirror: the
// registry ignores "ns".
func TestPull(t *testing.T) {
	src, err := serveImage(t.Context(), t.TempDir(), 1<<20, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := src.close(); err != nil {
			t.Error(err)
		}
	}()
	digest, n, err := newClient(src, src.host).pull(t.Context())
	if err != nil || !strings.HasPrefix(digest, "sha256:") || n < 100<<10 {
		t.Errorf("pulled %d bytes of %s: %v", n, digest, err)
	}
	// The registry refuses the form of range that the client tries first.
	if sent := src.sent.Load(); sent < n || sent > n+1024 {
		t.Errorf("registry counted %d bytes, client %d", sent, n)
	}
}

// corrupt flips a bit in everything larger than a manifest.
type corrupt struct{ next http.Handler }

func (c corrupt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.next.ServeHTTP(flipper{w}, r)
}

type flipper struct{ http.ResponseWriter }

func (f flipper) Write(p []byte) (int, error) {
	if len(p) < 4096 {
		return f.ResponseWriter.Write(p)
	}
	p = bytes.Clone(p)
	p[len(p)/2] ^= 1
	return f.ResponseWriter.Write(p)
}

func TestPullChecksDigests(t *testing.T) {
	src, err := serveImage(t.Context(), t.TempDir(), 1<<20, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.close() }()
	src.srv.Handler = corrupt{src.srv.Handler}
	if _, _, err := newClient(src, src.host).pull(t.Context()); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("corrupt content gave %v", err)
	}
}

func TestPlatform(t *testing.T) {
	if got, err := platformOf([]byte(`{"layers":[]}`)); got != "" || err != nil {
		t.Errorf("a manifest: %q, %v", got, err)
	}
	if _, err := platformOf([]byte(`{"manifests":[{"digest":"sha256:` + strings.Repeat("a", 64) + `","platform":{"os":"plan9","architecture":"mips"}}]}`)); err == nil {
		t.Error("an index without this platform was accepted")
	}
}

func example() *report {
	node := func(name string, peer, supernode int64) nodePull {
		return nodePull{Node: name, Seconds: 1.5, Bytes: 10e6, Digest: "sha256:x", Peer: peer, Supernode: supernode}
	}
	return &report{Image: "i", Pulls: []pulls{
		{Name: "cold", Origin: 10.1e6, Nodes: []nodePull{node("node1", 6e6, 4e6), node("node2", 7e6, 3e6), node("node3", 8e6, 2e6)}},
		{Name: "warm", Nodes: []nodePull{node("node1", 0, 0), node("node2", 0, 0), node("node3", 0, 0)}},
	}}
}

func TestReport(t *testing.T) {
	r := example()
	if err := r.judge(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 1+2*nodes+1 {
		t.Errorf("%d lines:\n%s", len(lines), &out)
	}
	if want := "OK: 3 nodes pulled 10.0 MB twice; the registry sent 10.1 MB (1.01×); every byte was verified"; lines[len(lines)-1] != want {
		t.Errorf("verdict %q", lines[len(lines)-1])
	}
	if !strings.Contains(lines[1], "cold  node1     1.50  10.0         6.0        4.0       0.0") {
		t.Errorf("first row %q", lines[1])
	}
}

func TestVerdictFindsProblems(t *testing.T) {
	for name, spoil := range map[string]func(*report){
		"too much from the registry": func(r *report) { r.Pulls[1].Origin = 2e6 },
		"missing bytes":              func(r *report) { r.Pulls[0].Nodes[2].Bytes-- },
		"different images":           func(r *report) { r.Pulls[1].Nodes[0].Digest = "sha256:y" },
	} {
		r := example()
		spoil(r)
		var out bytes.Buffer
		if err := r.judge(); err == nil || r.OK {
			t.Errorf("%s: no problem was found", name)
		}
		if err := r.table(&out); err != nil || !strings.Contains(out.String(), "FAILED: ") {
			t.Errorf("%s: %s", name, &out)
		}
	}
}
