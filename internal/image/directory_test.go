package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// rootfs makes a directory with a bit of everything that needs no rights.
func rootfs(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rootfs")
	write(t, filepath.Join(dir, "etc", "passwd"), "root")
	write(t, filepath.Join(dir, "a", strings.Repeat("n", 200), strings.Repeat("ö", 100)), "long")
	write(t, filepath.Join(dir, "empty"), "")
	write(t, filepath.Join(dir, "b"), string(noise(1, 100_000)))
	must(t, os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "etc", "hard")))
	must(t, os.Symlink("../x", filepath.Join(dir, "etc", "soft")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, os.Chmod(filepath.Join(dir, "b"), 0o4711|os.ModeSetuid))
	when := time.Unix(1_000_000_000, 123_456_789)
	must(t, filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ts, err := unix.TimeToTimespec(when)
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func directoryTar(t *testing.T, dir string) (headers []*tar.Header, raw []byte) {
	t.Helper()
	img := images(t, open(t, parse(t, dir), testOptions()))[0]
	if len(img.Layers) != 1 || img.Layers[0].DiffID != img.Layers[0].Descriptor.Digest {
		t.Fatalf("layers %+v", img.Layers)
	}
	raw, err := readAll(t.Context(), img.Layers[0].Open)
	must(t, err)
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, raw
		}
		must(t, err)
		headers = append(headers, h)
	}
}

func TestDirectory(t *testing.T) {
	dir := rootfs(t)
	headers, raw := directoryTar(t, dir)
	var names []string
	found := map[string]*tar.Header{}
	for _, h := range headers {
		names = append(names, h.Name)
		found[h.Name] = h
		if want := time.Unix(1_000_000_000, 123_456_789); h.Typeflag != tar.TypeLink && !h.ModTime.Equal(want) {
			t.Errorf("%s: time %v", h.Name, h.ModTime)
		}
		if h.Uid != os.Geteuid() || h.Uname != "" {
			t.Errorf("%s: owner %d %q", h.Name, h.Uid, h.Uname)
		}
	}
	long := "a/" + strings.Repeat("n", 200) + "/"
	if want := []string{"./", "a/", long, long + strings.Repeat("ö", 100), "b", "empty", "etc/", "etc/hard", "etc/passwd", "etc/soft", "pipe"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	for name, want := range map[string]tar.Header{
		"b":        {Typeflag: tar.TypeReg, Size: 100_000, Mode: 0o4711},
		"etc/hard": {Typeflag: tar.TypeLink, Linkname: "b", Mode: 0o4711},
		"etc/soft": {Typeflag: tar.TypeSymlink, Linkname: "../x", Mode: 0o777},
		"pipe":     {Typeflag: tar.TypeFifo, Mode: 0o600},
		"etc/":     {Typeflag: tar.TypeDir, Mode: 0o755},
	} {
		got := found[name]
		if got == nil || got.Typeflag != want.Typeflag || got.Size != want.Size || got.Linkname != want.Linkname || got.Mode != want.Mode {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if _, again := directoryTar(t, dir); !bytes.Equal(raw, again) {
		t.Error("the same directory gives other bytes")
	}
}

func TestDirectoryAsRoot(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	dir := rootfs(t)
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Lchown(filepath.Join(dir, "etc", "soft"), 3_000_000, 70_000))
	must(t, unix.Lsetxattr(filepath.Join(dir, "b"), "security.capability", capability, 0))
	must(t, unix.Lsetxattr(filepath.Join(dir, "etc"), "trusted.x", []byte("a\x00b"), 0))
	must(t, os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
	must(t, unix.Mount("tmpfs", filepath.Join(dir, "mnt"), "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(dir, "mnt"), 0)) })
	write(t, filepath.Join(dir, "mnt", "elsewhere"), "x")
	headers, _ := directoryTar(t, dir)
	for _, h := range headers {
		switch h.Name {
		case "null":
			if h.Typeflag != tar.TypeChar || h.Devmajor != 1 || h.Devminor != 3 {
				t.Errorf("%+v", h)
			}
		case "etc/soft":
			if h.Uid != 3_000_000 || h.Gid != 70_000 {
				t.Errorf("%+v", h)
			}
		case "b":
			if h.PAXRecords["SCHILY.xattr.security.capability"] != string(capability) {
				t.Errorf("%+v", h)
			}
		case "etc/":
			if h.PAXRecords["SCHILY.xattr.trusted.x"] != "a\x00b" {
				t.Errorf("%+v", h)
			}
		case "mnt/elsewhere":
			t.Error("went into another file system")
		}
	}
}

// capability is cap_net_raw+ep of version 2.
var capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func TestDirectoryWarnsOfSockets(t *testing.T) {
	t.Chdir(t.TempDir()) // for a short name
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", "s")
	must(t, err)
	defer func() { must(t, l.Close()) }()
	var log bytes.Buffer
	o := testOptions()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	img := images(t, open(t, parse(t, "./"), o))[0]
	checkRead(t, &img.Layers[0])
	if got := strings.Count(log.String(), "socket"); got != 1 {
		t.Errorf("%d warnings: %s", got, &log)
	}
}

func checkRead(t *testing.T, l *Layer) {
	t.Helper()
	if _, err := readAll(t.Context(), l.Open); err != nil {
		t.Error(err)
	}
}

func TestDirectoryErrors(t *testing.T) {
	dir := rootfs(t)
	s := open(t, parse(t, dir), testOptions())
	l := &images(t, s)[0].Layers[0]
	if _, err := l.ReadAt(t.Context(), make([]byte, 10), 5); !errors.Is(err, ErrUnsupported) {
		t.Errorf("ranged read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := l.Open(ctx)
	must(t, err)
	_, err = io.ReadFull(r, make([]byte, 10))
	must(t, err)
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	must(t, r.Close())
	r, err = l.Open(t.Context())
	must(t, err)
	must(t, r.Close()) // without reading

	write(t, filepath.Join(dir, "etc", "passwd"), "toor")
	if _, err := readAll(t.Context(), l.Open); !errors.Is(err, ErrCorrupt) {
		t.Errorf("changed directory: %v", err)
	}
	write(t, filepath.Join(dir, "etc", ".wh.passwd"), "")
	if _, err := Open(t.Context(), parse(t, dir), testOptions()); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), ".wh.passwd") {
		t.Errorf("whiteout in a directory: %v", err)
	}
	if _, err := Open(t.Context(), parse(t, dir+"/none"), testOptions()); !errors.Is(err, ErrNotFound) {
		t.Errorf("no directory: %v", err)
	}
}
