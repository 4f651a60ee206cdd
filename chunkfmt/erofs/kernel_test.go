package erofs_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// onDisk writes the image of a tree and its devices to files.
func onDisk(t testing.TB, f *fixture, tree *chunkfmt.Tree) (imagePath string, devicePaths []string) {
	t.Helper()
	image, devices := write(t, f, tree)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for i, d := range devices {
		devicePaths = append(devicePaths, file(fmt.Sprintf("device,%d", i), d))
	}
	return file("image", image), devicePaths
}

// mount mounts an image where nobody else sees it, and returns the path of its
// root, which is good until the test ends. It takes the options one by one, for
// those of many devices do not fit the page that mount(2) has for them.
func mount(t testing.TB, image string, devices []string) string {
	t.Helper()
	fsfd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("fsopen: %v", err)
	}
	defer func() { _ = unix.Close(fsfd) }()
	if err := unix.FsconfigSetString(fsfd, "source", image); err != nil {
		t.Fatalf("set source: %v", err)
	}
	for _, d := range devices {
		if err := unix.FsconfigSetString(fsfd, "device", d); err != nil {
			t.Fatalf("set device %s: %v", d, err)
		}
	}
	if err := unix.FsconfigSetFlag(fsfd, "ro"); err != nil {
		t.Fatalf("set ro: %v", err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		message := make([]byte, 4096)
		n, _ := unix.Read(fsfd, message)
		t.Fatalf("mount: %v %s", err, message[:max(n, 0)])
	}
	root, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("fsmount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(root) }) // a mount that was never moved ends with its descriptor
	return fmt.Sprintf("/proc/self/fd/%d", root)
}

// osView shows a mounted file system.
type osView string

func (v osView) stat(name string) (*status, error) {
	full := string(v) + "/" + name
	fi, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("status of type %T", fi.Sys())
	}
	s := &status{
		mode: fi.Mode(), uid: st.Uid, gid: st.Gid, nlink: st.Nlink, size: st.Size,
		rdev:  uint64(unix.Major(st.Rdev))<<32 | uint64(unix.Minor(st.Rdev)),
		mtime: fi.ModTime(), ino: st.Ino,
	}
	if s.xattrs, err = xattrsOf(full); err != nil {
		return nil, err
	}
	if c := time.Unix(st.Ctim.Unix()); !c.Equal(s.mtime) {
		return nil, fmt.Errorf("ctime %v is not mtime %v", c, s.mtime)
	}
	return s, nil
}

func xattrsOf(full string) (map[string]string, error) {
	all := map[string]string{}
	if n, err := unix.Llistxattr(full, nil); err == nil && n == 0 {
		return all, nil
	}
	list := make([]byte, 1<<16)
	n, err := unix.Llistxattr(full, list)
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}

// list also looks every name up, which the kernel does by bisection.
func (v osView) list(name string) ([]string, error) {
	dir := string(v) + "/" + name
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	if err != nil || slices.IsSorted(names) {
		return names, err
	}
	return nil, fmt.Errorf("names are not sorted: %.300q", names)
}

func (v osView) readlink(name string) (string, error) { return os.Readlink(string(v) + "/" + name) }

func (v osView) open(name string) (io.ReaderAt, io.Closer, error) {
	f, err := os.Open(string(v) + "/" + name)
	return f, f, err
}

func needMount(t testing.TB) {
	testenv.Integration(t)
	testenv.Root(t)
	testenv.Kernel(t, 6, 12) // mounts files
}

// deepTree is too deep for the reader, which resolves all paths from the root.
var deepTree = testTree{"deeper", func(f *fixture) { deep(f, 1000) }}

func TestKernelSeesTree(t *testing.T) {
	needMount(t)
	for _, tt := range append(trees[:len(trees):len(trees)], deepTree) {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.make(f)
			tree := f.tree()
			image, devices := onDisk(t, f, tree)
			root := mount(t, image, devices)
			compare(t, tree, osView(root))
			if _, err := os.Lstat(root + "/no such name"); !os.IsNotExist(err) {
				t.Errorf("a name that is not there: %v", err)
			}
		})
	}
}

func TestFsckAcceptsImages(t *testing.T) {
	testenv.Integration(t)
	for _, tt := range append(trees[:len(trees):len(trees)], deepTree) {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.make(f)
			image, devices := onDisk(t, f, f.tree())
			fsckImage(t, image, devices)
		})
	}
}

// fsckImage lets the programs of erofs-utils look at an image.
func fsckImage(t testing.TB, image string, devices []string) {
	t.Helper()
	fsck, dump := testenv.Tool(t, "fsck.erofs"), testenv.Tool(t, "dump.erofs")
	var args []string
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	for _, c := range [][]string{{fsck, "--extract"}, {dump, "-s"}, {dump, "-S"}, {dump, "--ls", "--path=/"}} {
		c = append(append(c, args...), image)
		// They recurse with 8 KiB of stack for each directory.
		sh := append([]string{"-c", `ulimit -s unlimited; exec "$@"`, "sh"}, c...)
		out, err := exec.CommandContext(t.Context(), "sh", sh...).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("<E>")) || bytes.Contains(out, []byte("<W>")) {
			t.Errorf("%s %s: %v: %.2000s", filepath.Base(c[0]), c[1], err, out)
		}
	}
}
