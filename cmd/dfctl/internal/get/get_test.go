package get_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/get"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/nodetest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

const url = "https://files.example.com/models/model.bin"

// content is several messages long and no multiple of anything.
func content() []byte {
	b := make([]byte, 5<<20+12345)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + i>>16)
	}
	return b
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// run executes dfctl get against a node.
func run(ctx context.Context, n *nodetest.Node, con *outputtest.Console, args ...string) error {
	cmd := get.Command(con.Console, "get")
	cmd.SetArgs(append(args, "--dfdaemon", n.Socket))
	cmd.SetErr(&bytes.Buffer{})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	return cmd.ExecuteContext(ctx)
}

// names lists a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes with SHA-256 %s, want %d with %s", path, len(got), digest(got), len(want), digest(want))
	}
}

func TestGet(t *testing.T) {
	data := content()
	tests := []struct {
		name string
		data []byte
		args []string
	}{
		{"plain", data, nil},
		{"with digest", data, []string{"--sha256", digest(data)}},
		{"with prefixed upper-case digest", data, []string{"--sha256", "sha256:" + strings.ToUpper(digest(data))}},
		{"empty", nil, nil},
		{"one byte", data[:1], nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, dir, con := nodetest.Start(t), t.TempDir(), outputtest.New("")
			n.URLs[url] = &nodetest.Content{Data: tt.data, ETag: "v1"}
			file := filepath.Join(dir, "f")
			if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			con.Step = time.Second
			if err := run(t.Context(), n, con, append(tt.args, url, "-O", file, "-o", "json")...); err != nil {
				t.Fatal(err)
			}
			checkFile(t, file, tt.data)
			if got := names(t, dir); got != "f" {
				t.Errorf("left in the directory: %s", got)
			}
			var res get.Result
			if err := json.Unmarshal(con.Stdout.Bytes(), &res); err != nil {
				t.Fatal(err)
			}
			length := int64(len(tt.data))
			want := get.Result{URL: url, File: file, Bytes: length, SHA256: digest(tt.data), Seconds: res.Seconds, TaskID: res.TaskID, From: res.From}
			if res != want || !strings.Contains(res.TaskID, ":") || res.Seconds <= 0 || *res.From != (get.From{Peers: length / 2, Origin: length - length/2}) {
				t.Errorf("result %+v from %+v", res, res.From)
			}
			if con.Stderr.Len() > 0 {
				t.Errorf("with -o json also wrote %q", &con.Stderr)
			}
		})
	}
}

func TestNameFromURL(t *testing.T) {
	n, con := nodetest.Start(t), outputtest.New("")
	t.Chdir(t.TempDir())
	data := content()[:1000]
	n.URLs["https://h/a/b%20c.bin?sig=secret"] = &nodetest.Content{Data: data}
	if err := run(t.Context(), n, con, "https://user:pw@h/a/b%20c.bin?sig=secret#part"); err != nil {
		t.Fatal(err)
	}
	checkFile(t, "b c.bin", data)
	if c := n.Opened()[0].Source.Credential; c.Username != "user" || c.Password != "pw" {
		t.Errorf("credential %v", c)
	}
	if all := con.Stdout.String() + con.Stderr.String(); strings.Contains(all, "secret") || strings.Contains(all, "pw") {
		t.Errorf("secrets shown: %s", all)
	}
	if !strings.HasPrefix(con.Stdout.String(), "b c.bin: 1000 B in 0.0s, 500 B from peers, 500 B from the origin\nsha256:") {
		t.Errorf("printed %q", &con.Stdout)
	}
}

func TestRequestReachesTheDaemon(t *testing.T) {
	n, con := nodetest.Start(t), outputtest.New("")
	n.URLs[url] = &nodetest.Content{Data: []byte("x")}
	err := run(t.Context(), n, con, url, "-O", filepath.Join(t.TempDir(), "f"), "--priority", "prefetch",
		"--header", "X-A: 1", "--header", "x-b:2", "--header", "Authorization: Bearer t")
	if err != nil {
		t.Fatal(err)
	}
	req := n.Opened()[0]
	if !req.Whole || req.Priority.String() != "PRIORITY_PREFETCH" || req.Source.Credential.Authorization != "Bearer t" ||
		len(req.Source.Headers) != 2 || req.Source.Headers[0].Name != "X-A" || req.Source.Headers[1].Value != "2" {
		t.Errorf("request %v", req)
	}
}

func TestStdout(t *testing.T) {
	n, con := nodetest.Start(t), outputtest.New("")
	data := content()
	n.URLs[url] = &nodetest.Content{Data: data}
	if err := run(t.Context(), n, con, url, "-O", "-"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(con.Stdout.Bytes(), data) {
		t.Error("standard output is not the content")
	}
	err := run(t.Context(), n, outputtest.New(""), url, "-O", "-", "--sha256", digest([]byte("other")))
	if code, _ := exit.Code(err); code != exit.Mismatch {
		t.Errorf("mismatch: %v", err)
	}
}

// Ctrl-C in the middle leaves a part that the next run continues.
func TestInterruptAndResume(t *testing.T) {
	n, dir, con := nodetest.Start(t), t.TempDir(), outputtest.New("")
	data := content()
	c := &nodetest.Content{Data: data, ETag: "v1", StopAt: 4 << 20}
	n.URLs[url] = c
	file := filepath.Join(dir, "f")
	ctx, cancel := context.WithCancel(t.Context())
	con.Columns, con.Step = 80, time.Second
	con.OnErr = func(s string) {
		if strings.Contains(s, "3.0 MiB /") {
			cancel()
		}
	}
	if err := run(ctx, n, con, url, "-O", file); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if !strings.Contains(con.Stderr.String(), "running the same command again continues") {
		t.Errorf("does not say how to go on: %q", &con.Stderr)
	}
	if got := names(t, dir); got != ".f.dfget-part .f.dfget-part.json" {
		t.Errorf("directory: %s", got)
	}
	c.StopAt = 0
	con = outputtest.New("")
	if err := run(t.Context(), n, con, url, "-O", file, "-o", "json", "--sha256", ""); err != nil {
		t.Fatal(err)
	}
	checkFile(t, file, data)
	var res get.Result
	if err := json.Unmarshal(con.Stdout.Bytes(), &res); err != nil {
		t.Fatal(err)
	}
	if res.Resumed < 3<<20 || res.Resumed != n.Reads()[1].Offset || res.SHA256 != digest(data) {
		t.Errorf("resumed %d, read from %d", res.Resumed, n.Reads()[1].Offset)
	}
}

// What an earlier run left is used only as far as it is proven.
func TestResumeTrustsNothing(t *testing.T) {
	const stop = 4 << 20
	tests := []struct {
		name   string
		change func(part string, c *nodetest.Content) error
		offset int64
	}{
		{"unchanged", func(string, *nodetest.Content) error { return nil }, stop},
		{"killed after the checkpoint", func(part string, _ *nodetest.Content) error {
			f, err := os.OpenFile(part, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(make([]byte, 1<<20))
			return errors.Join(err, f.Close())
		}, stop},
		{"another version", func(_ string, c *nodetest.Content) error { c.ETag = "v2"; return nil }, 0},
		{"damaged", func(part string, _ *nodetest.Content) error {
			f, err := os.OpenFile(part, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("damage"), 2<<20)
			return errors.Join(err, f.Close())
		}, 0},
		{"cut off by a power loss", func(part string, _ *nodetest.Content) error { return os.Truncate(part, stop-1) }, 0},
		{"checkpoint lost", func(part string, _ *nodetest.Content) error { return os.Remove(part + ".json") }, 0},
		{"checkpoint damaged", func(part string, _ *nodetest.Content) error {
			return os.WriteFile(part+".json", []byte("{"), 0o600)
		}, 0},
		{"part lost", func(part string, _ *nodetest.Content) error { return os.Remove(part) }, 0},
	}
	data := content()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, dir := nodetest.Start(t), t.TempDir()
			c := &nodetest.Content{Data: data, ETag: "v1", StopAt: stop, ReadError: status.Error(codes.Unavailable, "dfdaemon stops")}
			n.URLs[url] = c
			file := filepath.Join(dir, "f")
			err := run(t.Context(), n, outputtest.New(""), url, "-O", file)
			if err == nil || !strings.Contains(err.Error(), "dfdaemon stops") {
				t.Fatalf("error %v", err)
			}
			if err := tt.change(filepath.Join(dir, ".f.dfget-part"), c); err != nil {
				t.Fatal(err)
			}
			c.StopAt = 0
			if err := run(t.Context(), n, outputtest.New(""), url, "-O", file); err != nil {
				t.Fatal(err)
			}
			checkFile(t, file, data)
			if got := n.Reads()[1].Offset; got != tt.offset {
				t.Errorf("continued from %d, want %d", got, tt.offset)
			}
			if got := names(t, dir); got != "f" {
				t.Errorf("directory: %s", got)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	data := content()[:3<<20]
	tests := []struct {
		name    string
		content nodetest.Content
		args    []string
		code    int // 0: none
		message string
		left    string // besides the old file
	}{
		{"not found", nodetest.Content{OpenError: status.Error(codes.NotFound, "origin answered 404 Not Found")}, nil,
			exit.NotFound, "get " + url + ": not found: origin answered 404 Not Found", ""},
		{"forbidden", nodetest.Content{OpenError: status.Error(codes.PermissionDenied, "origin answered 403")}, nil,
			exit.Refused, "give a credential by --header", ""},
		{"wrong credential", nodetest.Content{OpenError: status.Error(codes.Unauthenticated, "origin answered 401")}, []string{"--header", "Authorization: x"},
			exit.Refused, "the credential given is not accepted", ""},
		{"origin down", nodetest.Content{OpenError: status.Error(codes.Unavailable, "origin: connection refused")}, nil,
			0, "not available now: origin: connection refused", ""},
		{"limit", nodetest.Content{OpenError: status.Error(codes.ResourceExhausted, "disk full\x1b[2J")}, nil,
			0, "a limit is reached: disk full\uFFFD[2J", ""},
		{"digest mismatch", nodetest.Content{Data: data}, []string{"--sha256", digest(data[1:])},
			exit.Mismatch, "the content has SHA-256 " + digest(data), ""},
		{"digest mismatch found by dfdaemon", nodetest.Content{Data: data, StopAt: 1 << 20, ReadError: status.Error(codes.DataLoss, "digest")}, []string{"--sha256", digest(data[1:])},
			exit.Mismatch, "does not match its digest", ""},
		{"too short", nodetest.Content{Data: data, Length: 5 << 20}, nil,
			0, "dfdaemon ended after 3145728 of 5242880 bytes", " .f.dfget-part .f.dfget-part.json"},
		{"too long", nodetest.Content{Data: data, Length: 1}, nil,
			0, "dfdaemon sent more than the 1 bytes announced", ""},
		{"stops midway", nodetest.Content{Data: data, StopAt: 1 << 20, ReadError: status.Error(codes.Internal, "boom")}, nil,
			0, "get " + url + ": boom", " .f.dfget-part .f.dfget-part.json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, dir, con := nodetest.Start(t), t.TempDir(), outputtest.New("")
			n.URLs[url] = &tt.content
			file := filepath.Join(dir, "f")
			if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := run(t.Context(), n, con, append(tt.args, url, "-O", file, "-o", "json")...)
			if err == nil || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("error %v, want %q", err, tt.message)
			}
			if code, _ := exit.Code(err); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			checkFile(t, file, []byte("old"))
			if got := strings.TrimSuffix(names(t, dir), "f"); strings.TrimSpace(got) != strings.TrimSpace(tt.left) {
				t.Errorf("left behind: %s", got)
			}
			if con.Stdout.Len() > 0 {
				t.Errorf("failure printed %q", &con.Stdout)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	n := nodetest.Start(t)
	n.URLs[url] = &nodetest.Content{Data: content(), StopAt: 1 << 20}
	err := run(t.Context(), n, outputtest.New(""), url, "-O", filepath.Join(t.TempDir(), "f"), "--timeout", "50ms")
	if err == nil || !strings.Contains(err.Error(), "not done within --timeout 50ms") {
		t.Errorf("error %v", err)
	}
}

func TestWrongUse(t *testing.T) {
	n := nodetest.Start(t)
	for message, args := range map[string]string{
		`use http://HOST/PATH`:         "ftp://h/x",
		`cannot be parsed`:             "http://h/%zz",
		`does not end in a file name`:  "https://h/dir/",
		`URL "https://h" does not end`: "https://h",
		`names a directory`:            url + " -O d/",
		`--sha256: invalid SHA-256`:    url + " --sha256 12",
		`--priority "high"`:            url + " --priority high",
		`--header "broken"`:            url + " --header broken",
		`sets this header itself`:      url + " --header Range:x",
		`want standard output`:         url + " -O - -o json",
		`--timeout -1s`:                url + " --timeout -1s",
		`use text or json`:             url + " -o yaml",
		`accepts 1 arg`:                "",
	} {
		err := run(t.Context(), n, outputtest.New(""), strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("get %s: %v, want %q", args, err, message)
		}
	}
	if len(n.Opened()) > 0 {
		t.Error("the daemon was asked")
	}
}

func TestRefusesTargets(t *testing.T) {
	n, dir := nodetest.Start(t), t.TempDir()
	n.URLs[url] = &nodetest.Content{Data: []byte("x")}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, ".link.dfget-part")); err != nil {
		t.Fatal(err)
	}
	for file, message := range map[string]string{
		dir: "is a directory", fifo: "is not a regular file",
		filepath.Join(dir, "missing", "f"): "no such file or directory",
		filepath.Join(dir, "link"):         "too many levels of symbolic links",
	} {
		err := run(t.Context(), n, outputtest.New(""), url, "-O", file)
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, want %q", file, err, message)
		}
	}
	if len(n.Opened()) > 0 {
		t.Error("the download was begun")
	}
}

func TestOneRunAtATime(t *testing.T) {
	n, dir, con := nodetest.Start(t), t.TempDir(), outputtest.New("")
	n.URLs[url] = &nodetest.Content{Data: content(), StopAt: 1 << 20}
	file := filepath.Join(dir, "f")
	ctx, cancel := context.WithCancel(t.Context())
	writing := make(chan struct{})
	var once sync.Once
	con.Columns, con.Step = 80, time.Second
	con.OnErr = func(s string) {
		if strings.Contains(s, "1.0 MiB /") {
			once.Do(func() { close(writing) })
		}
	}
	done := make(chan error)
	go func() { done <- run(ctx, n, con, url, "-O", file) }()
	<-writing
	if err := run(ctx, n, outputtest.New(""), url, "-O", file); err == nil || !strings.Contains(err.Error(), "another dfctl get") {
		t.Errorf("second run: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("first run: %v", err)
	}
}
