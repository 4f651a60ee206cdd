package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// deadMirror is an address nobody listens on.
const deadMirror = "127.0.0.1:1"

// errUnknownVersion stands for a node whose containerd cannot be asked.
var errUnknownVersion = errors.New("no containerd")

func unknownVersion(context.Context) (string, error) { return "", errUnknownVersion }

func fixedVersion(out string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return out, nil }
}

// refused answers every probe without a network.
type refused struct{}

func (refused) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("connection refused")
}

func clock() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func testNode(root string) *node {
	return &node{disk: &disk{root: root}, version: unknownVersion, client: &http.Client{Transport: refused{}}, now: clock}
}

// run executes a node command and returns what it printed.
func run(t *testing.T, opts Options, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	opts.Out = &out
	if opts.ContainerdVersion == nil {
		opts.ContainerdVersion = unknownVersion
	}
	if opts.Client == nil {
		opts.Client = &http.Client{Transport: refused{}}
	}
	cmd := Command(opts)
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors = true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func mustRun(t *testing.T, opts Options, args ...string) string {
	t.Helper()
	out, err := run(t, opts, args...)
	if err != nil {
		t.Fatalf("node %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// runJSON runs a command with -o json; a status that is not in force is no
// failure here.
func runJSON(t *testing.T, opts Options, args ...string) Report {
	t.Helper()
	out, err := run(t, opts, append(args, "-o", "json")...)
	if err != nil && !errors.Is(err, ErrNotInForce) {
		t.Fatalf("node %s: %v", strings.Join(args, " "), err)
	}
	var rep Report
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rep); err != nil {
		t.Fatalf("output is not one JSON document: %v\n%s", err, out)
	}
	if rest, _ := dec.Token(); rest != nil {
		t.Fatalf("something follows the JSON document: %v", rest)
	}
	return rep
}

// newRoot makes a file system with the given files, as an installed package
// leaves it: /var/lib/damselfly exists.
func newRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib/damselfly"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		put(t, root, path, content)
	}
	return root
}

func put(t *testing.T, root, path, content string) {
	t.Helper()
	name := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, root, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// snapshot describes everything below root: names, modes, owners, and for
// files the modification time and content.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s has no owner", name)
		}
		desc := fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			desc += fmt.Sprintf(" %s %q", info.ModTime().UTC().Format(time.RFC3339Nano), data)
		}
		rel, err := filepath.Rel(root, name)
		out[rel] = desc
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// contents is snapshot without our own state and with file contents only.
func contents(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(strings.TrimPrefix(name, root), "/")
		if err != nil || e.IsDir() || strings.HasPrefix(rel, "var/lib/damselfly") {
			return err
		}
		data, err := os.ReadFile(name)
		out[rel] = string(data)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func diff(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok {
			t.Errorf("%s: %s is missing", what, path)
		} else if g != w {
			t.Errorf("%s: %s\n got: %s\nwant: %s", what, path, g, w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %s is there and should not be:\n%s", what, path, got[path])
		}
	}
}

// mirrorServer answers /v2/ with a status and returns its HOST:PORT.
func mirrorServer(t *testing.T, status int) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}
