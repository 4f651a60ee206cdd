package backendtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// baseLayer has what a tree can have.
func baseLayer() Layer {
	sparse := make([]byte, 2<<20)
	copy(sparse[100_000:], Noise(9, 5000))
	copy(sparse[1_500_000:], Noise(10, 70_000))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	owned := Regular("etc/owned", []byte("of somebody\n"))
	owned.Uid, owned.Gid, owned.Mode = 70_000, 80_000, 0o4751
	old := Regular("etc/old", []byte("old"))
	old.ModTime = time.Unix(1, 0)
	sticky := Directory("tmp")
	sticky.Mode = 0o1777
	l := Layer{
		Directory("etc"), Directory("data"), Directory("dev"), Directory("links"), Directory("names"), Directory("gone"),
		Directory("opaque"), sticky, owned, old,
		Regular("etc/empty", nil), Regular("etc/tiny", []byte("x")), Regular("etc/small", Noise(1, 3000)),
		Regular("data/block", Noise(2, 4096)), Regular("data/odd", Noise(3, 12_345)),
		Regular("data/large", Noise(4, 1_234_567)), Regular("data/sparse", sparse), Regular("data/zeros", make([]byte, 1<<20)),
		Regular("data/again", bytes.Repeat(Noise(5, 32<<10), 20)), Regular("data/same", Noise(4, 1_234_567)),
		Regular("etc/capable", []byte("#!/bin/true\n")).WithXattrs("security.capability", capability),
		Directory("etc/labelled").WithXattrs("user.empty", "", "user.mime_type", "inode/directory"),
		Symlink("links/relative", "../etc/small"), Symlink("links/long", "/"+strings.Repeat("target/", 500)),
		Symlink("links/dangling", "nowhere"), Hardlink("links/hard", "data/odd"), Hardlink("links/harder", "data/odd"),
		Special(tar.TypeChar, "dev/null", 1, 3), Special(tar.TypeBlock, "dev/disk", 259, 70_000), Special(tar.TypeFifo, "dev/fifo", 0, 0),
		Regular("gone/file", Noise(6, 10_000)), Regular("opaque/hidden", Noise(7, 10_000)), Regular("etc/replaced", Noise(8, 10_000)),
	}
	for _, name := range []string{"!", "-", "+", ".-", "..-", " ", "a b", "\\", "ü", "日本", strings.Repeat("n", 255)} {
		l = append(l, Regular("names/"+name, []byte(name)))
	}
	l = append(l, Directory("many"))
	for i := range 2000 {
		l = append(l, Regular(fmt.Sprintf("many/file-%04d", i), fmt.Appendf(nil, "%d", i)))
	}
	return l
}

// upperLayer hides some of baseLayer.
func upperLayer() Layer {
	return Layer{
		Directory("etc"), Regular("etc/replaced", Noise(20, 20_000)), Regular(".wh.gone", nil),
		Directory("opaque"), Regular("opaque/.wh..wh..opq", nil), Regular("opaque/new", Noise(21, 5000)),
		Regular("many/.wh.file-0100", nil),
	}
}

func testTree(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, baseLayer(), upperLayer())
	dir, _ := s.mount(im)
	im.Want.Compare(t, dir)
	if err := unix.Access(filepath.Join(dir, "opaque/hidden"), unix.F_OK); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a hidden file: %v", err)
	}
	if _, most := s.node.Filler.Fetches(); most != 1 {
		t.Errorf("a group was fetched %d times", most)
	}
}

// testComplete mounts an image that is there already.
func testComplete(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, baseLayer(), upperLayer())
	for _, d := range im.Devices {
		if err := s.node.Filler.Fill(t.Context(), d, 0, d.Size()); err != nil {
			t.Fatal(err)
		}
	}
	dir, _ := s.mount(im)
	im.Want.Compare(t, dir)
}

func testNoXattrs(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, Layer{Regular("file", []byte("x"))})
	dir, _ := s.mount(im)
	im.Want.Compare(t, dir)
	for range 2 {
		_, err := unix.Lgetxattr(filepath.Join(dir, "file"), "user.none", make([]byte, 10))
		if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("an attribute that is not there: %v", err)
		}
	}
}

func testReadOnly(t *testing.T, open Open) {
	s := newSetup(t, open)
	dir, _ := s.mount(s.node.Image(t, Layer{Regular("file", []byte("x"))}))
	name := filepath.Join(dir, "file")
	for what, err := range map[string]error{
		"create": os.WriteFile(filepath.Join(dir, "new"), nil, 0o600),
		"write":  os.WriteFile(name, []byte("y"), 0o600),
		"remove": os.Remove(name),
		"chmod":  os.Chmod(name, 0o700), // #nosec G302 -- is refused
		"xattr":  unix.Setxattr(name, "user.x", []byte("y"), 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want %v", what, err, unix.EROFS)
		}
	}
}

func testStatFS(t *testing.T, open Open) {
	s := newSetup(t, open)
	dir, _ := s.mount(s.node.Image(t, Layer{Regular("file", Noise(1, 1<<20))}))
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Bfree != 0 || st.Namelen != 255 || st.Bsize != 4096 || st.Blocks == 0 || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs: %+v", st)
	}
}

// testExec runs the test's own program from the mount.
func testExec(t *testing.T, open Open) {
	s := newSetup(t, open)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self) // #nosec G304 -- this program
	if err != nil {
		t.Fatal(err)
	}
	f := Regular("program", program)
	f.Mode = 0o755
	dir, _ := s.mount(s.node.Image(t, Layer{f}))
	// By a shell: a Go process that starts a program waits in a way that holds up
	// its own collector until the first pages are there, which it serves itself.
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `"$0" -test.run='^$'`, filepath.Join(dir, "program")).CombinedOutput() // #nosec G204 -- this program
	if err != nil {
		t.Errorf("run a program: %v: %s", err, out)
	}
}

// mapVariable tells MapFile, in a process of its own, which file to map.
const mapVariable = "BACKENDTEST_MAP"

// MapFile is to be the body of a test TestMapFile of every package that runs
// Suite. A process must not touch mapped pages of a mount that it serves: the
// collector waits for the thread that faults, and the thread for an answer. So
// the suite runs that test in another process.
func MapFile(t *testing.T) {
	name := os.Getenv(mapVariable)
	if name == "" {
		return
	}
	file, err := os.Open(name) // #nosec G304 G703 -- a test's file
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE) // #nosec G115 -- a file descriptor
	if err != nil {
		t.Fatalf("mmap: %v", err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	sum := 0
	for off := len(mapped) - 1; off >= 0; off -= 77_777 { // backwards: without read-ahead
		sum += int(mapped[off])
	}
	fmt.Printf("touched %d, mapped %x\n", sum, sha256.Sum256(mapped))
}

func testMmap(t *testing.T, open Open) {
	s := newSetup(t, open)
	content := Noise(1, 1<<20+100)
	dir, _ := s.mount(s.node.Image(t, Layer{Regular("file", content)}))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestMapFile$", "-test.v") // #nosec G204 -- this program
	cmd.Env = append(os.Environ(), mapVariable+"="+filepath.Join(dir, "file"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("map a file: %v: %s", err, out)
	}
	if want := fmt.Sprintf("mapped %x", sha256.Sum256(content)); !strings.Contains(string(out), want) {
		t.Errorf("the mapping differs: %s", out)
	}
}

// testOverlay has overlayfs above the mount, as containers do.
func testOverlay(t *testing.T, open Open) {
	s := newSetup(t, open)
	im := s.node.Image(t, Layer{Directory("d"), Regular("d/kept", Noise(1, 100_000)), Regular("d/changed", Noise(2, 100_000))})
	lower, _ := s.mount(im)
	base := t.TempDir()
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(base, "merged")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, base, base)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatalf("mount overlayfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Errorf("unmount overlayfs: %v", err)
		}
	}()
	changed := filepath.Join(merged, "d/changed")
	f, err := os.OpenFile(changed, os.O_WRONLY|os.O_APPEND, 0) // #nosec G304 -- a test's file
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(f, "more")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(changed) // #nosec G304 -- a test's file
	if err != nil || !bytes.Equal(got, append(Noise(2, 100_000), "more"...)) {
		t.Errorf("a file that was copied up differs (%v)", err)
	}
	got, err = os.ReadFile(filepath.Join(merged, "d/kept")) // #nosec G304 -- a test's file
	if err != nil || !bytes.Equal(got, Noise(1, 100_000)) {
		t.Errorf("a file of the image differs (%v)", err)
	}
	im.Want.Compare(t, lower)
}
