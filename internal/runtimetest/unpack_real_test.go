package runtimetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// TestUnpackSparse has GNU tar store a sparse file in each of its ways.
func TestUnpackSparse(t *testing.T) {
	needMounts(t)
	c := startContainerd(t, "sparse", "", keepViews)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 { // more parts than the first header of the old format takes
		if _, err := f.WriteAt(random(1000*(i+1), uint64(i)), int64(i)*300_000); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(20<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "after"), []byte("after"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sparse", "after"} {
		if err := os.Chtimes(filepath.Join(dir, name), time.Unix(1, 0), time.Unix(1_600_000_000, 0)); err != nil {
			t.Fatal(err) // the old format has whole seconds only
		}
	}
	for i, args := range [][]string{{"posix", "--sparse-version=0.0"}, {"posix", "--sparse-version=0.1"}, {"posix", "--sparse-version=1.0"}, {"gnu"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			plain := gnuTar(t, dir, append([]string{"--sparse", "--format=" + args[0]}, append(args[1:], ".")...)...)
			if len(plain) > 4<<20 {
				t.Fatalf("the tar has %d bytes: the file is not stored as a sparse one", len(plain))
			}
			u, p := &unpackCase{}, packed(t, [][]byte{plain}, i)
			if args[0] == "posix" {
				u.run(t, c, [][]byte{plain}, p)
				return
			}
			// containerd does not know GNU's own format.
			if err := c.unpack(t, p, 1, native); err == nil {
				t.Error("containerd has unpacked it")
			}
			u.check(t, variants[0], p, []model{{tree: trimmed(t, walk(t, dir)), dir: dir, kept: map[string]map[field]bool{}}})
		})
	}
}

// trimmed drops what the root directory has: a tar's is ignored.
func trimmed(t *testing.T, tree map[string]object) map[string]object {
	t.Helper()
	tree["."][fMode], tree["."][fOwner], tree["."][fMtime] = unknown, unknown, unknown
	return tree
}

// gnuTar returns the tar that GNU tar makes of what is in a directory.
func gnuTar(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tar")
	if out, err := command(t.Context(), testenv.Tool(t, "tar"), append([]string{"-C", dir, "--sort=name", "-cf", name}, args...)...); err != nil {
		t.Fatalf("tar %s: %v\n%s", args, err, out)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnpackHost makes images of what the machine has in /usr: a layer of its
// directories, one that changes them, and one that removes from them.
func TestUnpackHost(t *testing.T) {
	needMounts(t)
	c := startContainerd(t, "host", "", keepViews)
	for i, images := range []struct {
		name string
		dirs []string
		tar  []string
	}{
		{"documents", []string{"usr/share/doc", "usr/share/zoneinfo", "usr/share/terminfo", "usr/share/man"}, []string{"--format=posix", "--xattrs", "--xattrs-include=*"}},
		{"libraries", []string{"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib/systemd"}, []string{"--format=gnu", "--sparse"}},
		{"programs", []string{"usr/sbin", "usr/bin", "usr/lib/python3", "usr/share/perl5"}, []string{"--format=ustar"}},
	} {
		t.Run(images.name, func(t *testing.T) {
			names := choose(t, images.dirs)
			list := filepath.Join(t.TempDir(), "names")
			if err := os.WriteFile(list, []byte(strings.Join(names, "\x00")+"\x00"), 0o600); err != nil {
				t.Fatal(err)
			}
			lower := gnuTar(t, "/", append(images.tar, "--no-recursion", "--null", "--verbatim-files-from", "-T", list)...)
			above := tarsOf(t, changes(names))
			tars := [][]byte{lower, above[0], above[1]}
			(&unpackCase{}).run(t, c, tars, packed(t, tars, i))
		})
	}
}

// choose returns names below the directories, of at most 40 MB in all.
func choose(t *testing.T, dirs []string) []string {
	t.Helper()
	var names []string
	left := int64(40 << 20)
	for _, d := range dirs {
		share := left / 2
		err := fs.WalkDir(os.DirFS("/"), d, func(name string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			if e.Type().IsRegular() {
				if info.Size() > share || info.Size() > 8<<20 {
					return nil
				}
				share -= info.Size()
				left -= info.Size()
			}
			names = append(names, name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(names) < 100 {
		t.Skipf("the machine has only %d files in %s", len(names), dirs)
	}
	return names
}

// changes makes two layers above one that has the names. They do nothing that
// overlayfs takes otherwise than native.
func changes(names []string) [][]member {
	var change, remove []member
	hidden := map[string]bool{}
	for i, name := range names {
		info, err := os.Lstat("/" + name)
		if err != nil {
			continue
		}
		switch {
		case info.IsDir() && i%11 == 3:
			change = append(change, dir(name, xattr("user.changed", "yes")))
		case info.IsDir() && i%13 == 5 && !isBelow(hidden, name):
			remove = append(remove, dir(name), opaque(name))
			hidden[name] = true
		case info.IsDir():
		case i%7 == 1:
			change = append(change, file(name, fmt.Sprintf("%d", i)), hard(name+".linked", name))
		case i%7 == 2 && !isBelow(hidden, name):
			remove = append(remove, whiteout(name))
		case i%31 == 3:
			change = append(change, dir(name), file(name+"/was-a-file", ""))
		case i%31 == 4:
			change = append(change, symlink(name, "/"+names[i/2]))
		}
	}
	return [][]member{change, remove}
}

func isBelow(dirs map[string]bool, name string) bool {
	for name != "." && !dirs[name] {
		name = path.Dir(name)
	}
	return dirs[name]
}

// TestUnpackLayouts compares the images of OCI layouts that
// DAMSELFLY_TEST_LAYOUTS lists, separated by colons.
func TestUnpackLayouts(t *testing.T) {
	layouts := os.Getenv("DAMSELFLY_TEST_LAYOUTS")
	if layouts == "" {
		t.Skip("DAMSELFLY_TEST_LAYOUTS lists no OCI layouts to compare")
	}
	needMounts(t)
	for _, at := range strings.Split(layouts, ":") {
		t.Run(filepath.Base(filepath.Dir(at)), func(t *testing.T) {
			p, tars := readLayout(t, at)
			u := &unpackCase{}
			u.run(t, startContainerd(t, "layout", "", keepViews), tars, p)
			for i, plain := range tars {
				t.Logf("layer %d: %d entries in %d bytes", i+1, entriesOf(t, plain), len(plain))
			}
		})
	}
}

func entriesOf(t *testing.T, plain []byte) int {
	t.Helper()
	n := 0
	for tr := tar.NewReader(bytes.NewReader(plain)); ; n++ {
		if _, err := tr.Next(); errors.Is(err, io.EOF) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// readLayout reads the first image of an OCI layout.
func readLayout(t *testing.T, at string) (*packedImage, [][]byte) {
	t.Helper()
	type descriptor struct{ MediaType, Digest string }
	blob := func(digest string) []byte {
		b, err := os.ReadFile(filepath.Join(at, "blobs", strings.Replace(digest, ":", "/", 1)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	decode := func(data []byte, v any) {
		if err := json.Unmarshal(data, v); err != nil {
			t.Fatal(err)
		}
	}
	var manifest struct {
		Manifests, Layers []descriptor
		Config            descriptor
	}
	top, err := os.ReadFile(filepath.Join(at, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	for decode(top, &manifest); len(manifest.Manifests) > 0; decode(top, &manifest) {
		top = blob(manifest.Manifests[0].Digest)
		manifest.Manifests = nil
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	decode(blob(manifest.Config.Digest), &config)
	p := &packedImage{diffIDs: config.RootFS.DiffIDs}
	var tars [][]byte
	for _, l := range manifest.Layers {
		data := blob(l.Digest)
		p.layers = append(p.layers, data)
		p.mediaTypes = append(p.mediaTypes, l.MediaType)
		tars = append(tars, unpacked(t, path.Base(l.MediaType), data))
	}
	return p, tars
}

// unpacked returns the tar of a layer.
func unpacked(t *testing.T, mediaType string, data []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(data)
	var err error
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		r, err = gzip.NewReader(r)
	case strings.HasSuffix(mediaType, "zstd"):
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
