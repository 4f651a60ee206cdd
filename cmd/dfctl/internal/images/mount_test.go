package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/images"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/nodetest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// TestMain is dfctl where that calls itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "image" {
		root := &cobra.Command{Use: "dfctl"}
		root.AddCommand(images.Command(output.System()))
		os.Exit(cli.Run(context.Background(), root, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// shown is a writer that tells when something was written.
type shown struct {
	mu   sync.Mutex
	text bytes.Buffer
	once sync.Once
	ch   chan struct{}
}

func (s *shown) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.once.Do(func() { close(s.ch) })
	return s.text.Write(p)
}

// mounted runs a command that mounts, calls use while it does, and returns its
// exit code, and what it printed.
func (u *user) mounted(use func(stop func()), args ...string) (int, string) {
	u.t.Helper()
	out := &shown{ch: make(chan struct{})}
	u.setup = func(con *outputtest.Console) { con.Out = out }
	defer func() { u.setup = nil }()
	ctx, cancel := context.WithCancel(u.t.Context())
	defer cancel()
	code := make(chan int, 1)
	go func() { code <- u.run(ctx, args...) }()
	select {
	case <-out.ch:
	case c := <-code:
		u.t.Fatalf("dfctl image %s: exit code %d: %s", strings.Join(args, " "), c, &u.con.Stderr)
	}
	use(cancel)
	c := <-code
	return c, out.text.String()
}

// isMounted reports whether something is mounted at a directory.
func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+dir+" ")
}

func fuseUser(t *testing.T) (*user, *indextest.Registry, string) {
	t.Helper()
	testenv.Integration(t)
	testenv.Root(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	u := newUser(t)
	reg := indextest.NewRegistry(t, true)
	ref := reg.Put("app:v1", app(t, nil))
	u.ok("convert", ref, "--chunk-size", "64KiB", "--group-size", "128KiB", "--new-blobs")
	return u, reg, ref
}

func TestMountReadsWhatIsAskedFor(t *testing.T) {
	u, _, ref := fuseUser(t)
	dir, work := t.TempDir(), t.TempDir()
	trace := filepath.Join(work, "trace")
	code, out := u.mounted(func(stop func()) {
		f, err := os.Open(filepath.Join(dir, "lib/other"))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100)
		if _, err := f.ReadAt(got, 200_000); err != nil || string(got) != other[200_000:200_100] {
			t.Errorf("read a part: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		all, err := os.ReadFile(filepath.Join(dir, "lib/big"))
		if err != nil || string(all) != big {
			t.Errorf("read lib/big: %d bytes, %v", len(all), err)
		}
		stop()
	}, "mount", "--trace", trace, "--cache-dir", filepath.Join(work, "cache"), "-o", "json", ref, dir)
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, &u.con.Stderr)
	}
	var doc images.Mounted
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Directory != dir || doc.Backend != "fuse" || doc.Through != "" || !doc.Trust.Trusted || doc.Files != 7 || doc.Image != ref {
		t.Errorf("printed %+v", doc)
	}
	if isMounted(t, dir) {
		t.Error("it is still mounted")
	}
	accesses := readAccesses(t, trace)
	if len(accesses) < 2 || accesses[0].Path != "/lib/other" || accesses[0].Offset > 200_000 || accesses[0].Offset+accesses[0].Length < 200_100 {
		t.Errorf("trace %+v", accesses)
	}
	total := int64(0)
	for _, a := range accesses {
		if a.Path == "/lib/big" || a.Path == "/lib/again" { // the same content
			total += a.Length
		}
	}
	if total != int64(len(big)) {
		t.Errorf("the trace has %d bytes of lib/big, want %d", total, len(big))
	}
	u.ok("convert", ref, "--trace", trace, "--tag", "traced")
}

func readAccesses(t *testing.T, file string) []build.Access {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read from
	accesses, err := build.ParseTrace(f)
	if err != nil {
		t.Fatal(err)
	}
	return accesses
}

func TestMountEndsWhenItIsTakenAway(t *testing.T) {
	u, _, ref := fuseUser(t)
	dir := t.TempDir()
	code, out := u.mounted(func(func()) {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}, "mount", ref, dir)
	if code != cli.ExitOK {
		t.Errorf("exit code %d: %s", code, &u.con.Stderr)
	}
	contains(t, out, ref+" is mounted at "+dir+": ", "in 7 files, fetched as they are read, straight from where the image is\n", "umount "+dir)
}

// A mount of a layout needs nobody; what the source has damaged is an I/O error.
func TestMountFailsReadsOfWrongBytes(t *testing.T) {
	u, _, ref := fuseUser(t)
	layout := t.TempDir() + "/layout"
	u.ok("convert", ref, "--to", "oci:"+layout+":v1", "--new-blobs", "--no-sign", "--codec", "none")
	u.fails(exit.Refused, "not trusted", "mount", "oci:"+layout+":v1", t.TempDir())
	u.ok("convert", ref, "--to", "oci:"+layout+":v1", "--new-blobs", "--codec", "none")
	damageLargest(t, layout)
	dir := t.TempDir()
	code, _ := u.mounted(func(stop func()) {
		if _, err := os.ReadFile(filepath.Join(dir, "lib/big")); err == nil {
			t.Error("wrong bytes were served")
		}
		if got, err := os.ReadFile(filepath.Join(dir, "etc/motd")); err != nil || string(got) != "hello" {
			t.Errorf("etc/motd: %q, %v", got, err)
		}
		stop()
	}, "mount", "oci:"+layout+":v1", dir)
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

// damageLargest changes a byte in each 64 KiB of the largest blob of a layout.
func damageLargest(t *testing.T, layout string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	largest, size := "", int64(0)
	for _, name := range names {
		if fi, err := os.Stat(name); err == nil && fi.Size() > size {
			largest, size = name, fi.Size()
		}
	}
	data, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(data); i += 64 << 10 {
		data[i] ^= 1
	}
	if err := os.Chmod(largest, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(largest, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// What dfdaemon has comes through it, and the rest straight from the registry.
func TestMountAsksTheDaemonFirst(t *testing.T) {
	u, reg, ref := fuseUser(t)
	n := nodetest.Start(t)
	layout := t.TempDir() + "/layout"
	u.ok("convert", ref, "--to", "oci:"+layout, "--chunk-size", "64KiB", "--group-size", "128KiB", "--new-blobs")
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(blobs, err)
	}
	for _, missing := range []bool{true, false} {
		for _, b := range blobs {
			data, err := os.ReadFile(b)
			if err != nil {
				t.Fatal(err)
			}
			if !missing {
				n.URLs["https://"+reg.Host+"/v2/app/blobs/sha256:"+filepath.Base(b)] = &nodetest.Content{Data: data}
			}
		}
		dir := t.TempDir()
		code, out := u.mounted(func(stop func()) {
			if !missing {
				reg.Fail("/blobs/", 500)
			}
			got, err := os.ReadFile(filepath.Join(dir, "lib/other"))
			if err != nil || string(got) != other {
				t.Errorf("missing %v: read lib/other: %d bytes, %v", missing, len(got), err)
			}
			stop()
		}, "mount", "--dfdaemon", n.Socket, ref, dir)
		contains(t, out, "fetched as they are read, through dfdaemon")
		if warned := strings.Contains(u.con.Stderr.String(), "content is fetched without dfdaemon"); code != cli.ExitOK || warned != missing {
			t.Errorf("missing %v: exit code %d: %s", missing, code, &u.con.Stderr)
		}
	}
	if len(n.Reads()) == 0 {
		t.Error("dfdaemon was not asked")
	}
}

func TestTraceOfWhatTheClusterHasLearned(t *testing.T) {
	u := newUser(t)
	reg := indextest.NewRegistry(t, true)
	ref := reg.Put("app:v1", app(t, nil))
	u.ok("convert", ref, "--chunk-size", "64KiB", "--group-size", "64KiB", "--new-blobs")
	i := decode[images.Inspection](u, cli.ExitOK, "inspect", ref)
	blob, group := chunkAt(t, ref, "lib/other", 1)
	n := nodetest.Start(t)
	trace := filepath.Join(t.TempDir(), "trace")
	u.fails(exit.NotFound, "nobody has reported yet", "trace", ref, "--learned", "-O", trace, "--dfdaemon", n.Socket)
	n.Profiles = map[string][]*apiv1.Access{i.Manifest: {
		{Blob: blob, Group: group}, {Blob: "sha256:bad"}, {Blob: blob, Group: 1 << 20}, {Blob: blob, Group: group},
	}}
	doc := decode[images.Traced](u, cli.ExitOK, "trace", ref, "--learned", "-O", trace, "--dfdaemon", n.Socket)
	if doc.Accesses != 1 || doc.Bytes != 64<<10 || doc.Command != nil {
		t.Errorf("printed %+v", doc)
	}
	if got := readAccesses(t, trace); len(got) != 1 || got[0] != (build.Access{Path: "/lib/other", Offset: 64 << 10, Length: 64 << 10}) {
		t.Errorf("trace %+v", got)
	}
}

// chunkAt returns where the nth chunk of a file is.
func chunkAt(t *testing.T, reference, path string, nth int) (blob string, group uint32) {
	t.Helper()
	ref, err := image.Parse(reference)
	if err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(t.Context(), ref, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close() //nolint:errcheck // only read from
	resolved, err := imageindex.Resolve(t.Context(), src, func([]v1.Platform) (int, error) { return 0, nil })
	if err != nil {
		t.Fatal(err)
	}
	found, err := imageindex.FindAny(t.Context(), src, resolved, nil)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := imageindex.Load(t.Context(), src, found, chunkfmt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := loaded.Merge(len(loaded.Indexes))
	if err != nil {
		t.Fatal(err)
	}
	inode, err := tree.Lookup(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range tree.Content(inode) {
		if nth--; nth < 0 {
			return tree.Blobs[c.Blob].Digest.String(), c.Group
		}
	}
	t.Fatalf("%s has too few chunks", path)
	return "", 0
}

func TestMountSaysWhatIsWrong(t *testing.T) {
	u, _, ref := fuseUser(t)
	full := filepath.Dir(write(t, filepath.Join(t.TempDir(), "file"), "x"))
	u.fails(cli.ExitFailure, "not empty: name an empty one", "mount", ref, full)
	u.fails(cli.ExitFailure, "make it with mkdir", "mount", ref, full+"/absent")
	u.fails(cli.ExitFailure, "it is not a directory", "mount", ref, full+"/file")
	u.fails(cli.ExitFailure, "remove it or name another file", "mount", "--trace", full+"/file", ref, t.TempDir())
	u.fails(cli.ExitUsage, "accepts 2 arg(s)", "mount", ref)
}

// executable returns a tar of one program.
func executable(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestTraceRunsACommand(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	program := filepath.Join(t.TempDir(), "program")
	source := write(t, filepath.Join(t.TempDir(), "main.go"), tracedProgram)
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "go"), "build", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	u := newUser(t)
	reg := indextest.NewRegistry(t, true)
	ref := reg.Put("app:v1", indextest.ImageOf(t, ggcr.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Config: ggcr.Config{Env: []string{"PATH=/usr/bin"}},
	}, indextest.Layer(t, files{"lib/other": other}.Tar(t)), indextest.Layer(t, executable(t, "usr/bin/hello", data))))
	u.ok("convert", ref, "--new-blobs")
	trace := filepath.Join(t.TempDir(), "trace")
	if code := u.run(t.Context(), "trace", ref, "-O", trace, "-o", "json", "--", "hello", "3"); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, &u.con.Stderr)
	}
	var doc images.Traced
	if err := json.Unmarshal(u.con.Stdout.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.ExitCode == nil || *doc.ExitCode != 3 || doc.Files < 2 || doc.Image != ref {
		t.Errorf("printed %+v", doc)
	}
	contains(t, u.con.Stderr.String(), "program here", "hello ended with exit code 3")
	u.fails(cli.ExitFailure, "could not be run in "+ref, "trace", ref, "-O", trace+"2", "--", "absent")
	contains(t, u.con.Stderr.String(), "run absent in the image: no such file or directory")
	accesses := readAccesses(t, trace)
	if accesses[0].Path != "/usr/bin/hello" || accesses[len(accesses)-1].Path != "/lib/other" {
		t.Errorf("trace %+v", accesses)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "dfctl-trace-*")); len(left) > 0 && os.Getenv("TMPDIR") != "" {
		t.Errorf("left behind: %v", left)
	}
}

const tracedProgram = `package main

import (
	"fmt"
	"os"
)

func main() {
	if _, err := os.ReadFile("/lib/other"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, err := range []error{os.WriteFile("/dev/null", nil, 0), os.WriteFile("/new", nil, 0o600), os.Chdir("/proc/self")} {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("program here")
	os.Exit(len(os.Args) + 1)
}
`

func TestTraceUsage(t *testing.T) {
	u := newUser(t)
	for message, args := range map[string][]string{
		"--out":              {"r.local/a"},
		"say what to record": {"r.local/a", "-O", "x"},
		"want one REF":       {"r.local/a", "more", "-O", "x"},
		"mounts nothing":     {"r.local/a", "-O", "x", "--learned", "--dir", "/mnt"},
		"cannot be negative": {"r.local/a", "-O", "x", "--dir", "/mnt", "--duration", "-1s"},
	} {
		u.fails(cli.ExitUsage, message, append([]string{"trace"}, args...)...)
	}
}
