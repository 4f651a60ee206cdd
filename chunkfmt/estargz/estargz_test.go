package estargz_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/estargz"
)

// blobSource is the blob of a layer.
type blobSource []byte

func (s blobSource) ReadAt(_ context.Context, _ *chunkfmt.Blob, p []byte, off int64) error {
	if off+int64(len(p)) > int64(len(s)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, s[off:])
	return nil
}

func open(t testing.TB, l layer, o estargz.Options) *chunkfmt.Index {
	t.Helper()
	x, err := estargz.Open(t.Context(), bytes.NewReader(l.blob), int64(len(l.blob)), o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestOpenFindsEverything(t *testing.T) {
	for _, s := range styles {
		t.Run(s.name, func(t *testing.T) {
			l := write(t, s, files())
			x := open(t, l, l.options())
			r := content.NewReader(&x.Tree, blobSource(l.blob), content.Options{})
			for _, f := range files() {
				checkFile(t, &x.Tree, r, f)
			}
			failures, err := content.VerifyBlobs(t.Context(), &x.Tree, blobSource(l.blob), content.VerifyOptions{MaxFailures: 10})
			if err != nil || len(failures) > 0 {
				t.Errorf("verification: %v, %v", failures, err)
			}
			checkLayer(t, x, l)
		})
	}
}

// checkLayer checks what is special about the files that make up a layer.
func checkLayer(t *testing.T, x *chunkfmt.Index, l layer) {
	t.Helper()
	lookup := func(name string) uint32 {
		inode, err := x.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		return inode
	}
	if lookup("etc/link") != lookup("etc/passwd") || x.Inodes[lookup("etc/link")].Nlink != 2 {
		t.Error("the hard link is none")
	}
	if k := x.Kind(lookup("opt/gone")); k != chunkfmt.Whiteout {
		t.Errorf("opt/gone is of kind %d", k)
	}
	if f := x.Tree.Attr(lookup("opt/new")).Flags; f != chunkfmt.Opaque|chunkfmt.Implied {
		t.Errorf("opt/new has flags %d", f)
	}
	if f := x.Tree.Attr(lookup("usr")).Flags; f != chunkfmt.Implied {
		t.Errorf("usr has flags %d", f)
	}
	for _, name := range []string{".no.prefetch.landmark", "stargz.index.json", ".wh..wh.plnk", "opt/.wh.gone"} {
		if _, err := x.Lookup(name); err == nil {
			t.Errorf("%s is in the tree", name)
		}
	}
	b := &x.Blobs[0]
	if b.Digest != chunkfmt.Sum(l.blob) || !b.Unproven || b.Size != int64(len(l.blob)) {
		t.Errorf("blob %+v", b)
	}
	for _, name := range []string{"usr/lib/big", "var/sparse"} {
		first := int64(-1)
		for off, c := range x.Content(lookup(name)) {
			at, ok := x.DeviceOffset(c)
			if !ok {
				continue
			}
			if first < 0 {
				first = at - off
			}
			if at-off != first || first%chunkfmt.BlockSize != 0 {
				t.Errorf("%s: byte %d is at %d of the device, byte 0 at %d", name, off, at, first)
			}
		}
	}
}

func checkFile(t *testing.T, x *chunkfmt.Tree, r *content.Reader, f tarFile) {
	t.Helper()
	if strings.Contains(f.Name, ".wh.") || strings.Contains(f.Name, "landmark") || f.Typeflag == tar.TypeLink {
		return
	}
	inode, err := x.Lookup(f.Name)
	if err != nil {
		t.Error(err)
		return
	}
	n, a := &x.Inodes[inode], x.Attr(inode)
	got := fmt.Sprintf("%s %o %d %d %d.%d", kindName(a.Kind), a.Mode, a.UID, a.GID, n.Mtime, n.Nsec)
	want := fmt.Sprintf("%s %o %d %d %d.0", typeNames[f.Typeflag], f.Mode, f.Uid, f.Gid, when.Unix())
	if inode == 0 {
		want = "dir 755 0 0 0.0" // as unpacking leaves it
	}
	if got != want {
		t.Errorf("%s: %s, want %s", f.Name, got, want)
	}
	xattrs := map[string]string{}
	for _, x := range x.XattrsOf(inode) {
		xattrs["SCHILY.xattr."+x.Name] = x.Value
	}
	if !maps.Equal(xattrs, f.PAXRecords) {
		t.Errorf("%s: extended attributes %q, want %q", f.Name, xattrs, f.PAXRecords)
	}
	switch f.Typeflag {
	case tar.TypeReg:
		checkContent(t, r, inode, f)
	case tar.TypeSymlink:
		if x.Target(inode) != f.Linkname {
			t.Errorf("%s: links to %s", f.Name, x.Target(inode))
		}
	case tar.TypeChar, tar.TypeBlock:
		if n.Size != f.Devmajor<<32|f.Devminor {
			t.Errorf("%s: device %x", f.Name, n.Size)
		}
	}
}

func kindName(k chunkfmt.Kind) string {
	return map[chunkfmt.Kind]string{
		chunkfmt.Dir: "dir", chunkfmt.File: "reg", chunkfmt.Symlink: "symlink", chunkfmt.Fifo: "fifo",
		chunkfmt.CharDevice: "char", chunkfmt.BlockDevice: "block",
	}[k]
}

func checkContent(t *testing.T, r *content.Reader, inode uint32, f tarFile) {
	t.Helper()
	file, err := r.Open(t.Context(), inode)
	if err != nil {
		t.Error(err)
		return
	}
	got, err := io.ReadAll(file)
	if err != nil || !bytes.Equal(got, f.content) {
		t.Errorf("%s: %d bytes, %v; want %d", f.Name, len(got), err, len(f.content))
	}
}

func TestZerosAreHoles(t *testing.T) {
	l := write(t, styles[5], files())
	x := open(t, l, l.options())
	for name, want := range map[string]int64{"var/sparse": 300 << 10, "var/aligned": 16384, "var/some zeros": 0} {
		inode, err := x.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		holes := int64(0)
		for _, c := range x.Content(inode) {
			if c.Blob == chunkfmt.Hole {
				holes += int64(c.Length)
			}
		}
		if holes != want {
			t.Errorf("%s has %d bytes in holes, want %d", name, holes, want)
		}
	}
}

func TestVerification(t *testing.T) {
	other := chunkfmt.Sum([]byte("other"))
	for _, s := range []style{styles[0], styles[5], styles[6]} {
		l := write(t, s, files())
		right := chunkfmt.Sum(l.table)
		with := func(change func(*estargz.Options)) estargz.Options {
			o := l.options()
			o.Annotations = maps.Clone(o.Annotations)
			change(&o)
			return o
		}
		for name, c := range map[string]struct {
			o    estargz.Options
			want error
		}{
			"annotations":     {l.options(), nil},
			"digest":          {estargz.Options{Digest: right, TOCDigest: right}, nil},
			"unverified":      {estargz.Options{Digest: right, AllowUnverified: true}, nil},
			"nothing":         {estargz.Options{Digest: right}, estargz.ErrUnverified},
			"both":            {with(func(o *estargz.Options) { o.TOCDigest = right }), nil},
			"wrong digest":    {with(func(o *estargz.Options) { o.TOCDigest = other }), chunkfmt.ErrInvalid},
			"wrong, allowed":  {estargz.Options{Digest: right, TOCDigest: other, AllowUnverified: true}, chunkfmt.ErrInvalid},
			"wrong toc":       {with(func(o *estargz.Options) { o.Annotations[estargz.TOCDigestAnnotation] = other.String() }), chunkfmt.ErrInvalid},
			"malformed toc":   {with(func(o *estargz.Options) { o.Annotations[estargz.TOCDigestAnnotation] = "sha256:12" }), errAny},
			"few entries":     {with(func(o *estargz.Options) { o.Limits.Entries = 3 }), estargz.ErrUnsupported},
			"few stored":      {with(func(o *estargz.Options) { o.Limits.Stored = 100 }), estargz.ErrUnsupported},
			"few plain bytes": {with(func(o *estargz.Options) { o.Limits.Plain = 100 }), estargz.ErrUnsupported},
		} {
			_, err := estargz.Open(t.Context(), bytes.NewReader(l.blob), int64(len(l.blob)), c.o)
			if !errors.Is(err, c.want) && (err == nil || !errors.Is(c.want, errAny)) {
				t.Errorf("%s, %s: %v, want %v", s.name, name, err, c.want)
			}
		}
	}
}

var errAny = errors.New("any error")

func TestChecksumOfStoredTable(t *testing.T) {
	l := write(t, styles[5], files())
	o := l.options()
	o.Annotations[estargz.ChecksumAnnotation] = chunkfmt.Sum(nil).String()
	if _, err := estargz.Open(t.Context(), bytes.NewReader(l.blob), int64(len(l.blob)), o); !errors.Is(err, chunkfmt.ErrInvalid) {
		t.Errorf("wrong checksum: %v", err)
	}
	for _, position := range []string{"", "1:2:3", "1:2:3:1", "-1:2:3:1", "1:99999999999:3:1", "9223372036854775807:9223372036854775807:1:1", "1:2:3:2"} {
		o := l.options()
		o.Annotations = map[string]string{estargz.PositionAnnotation: position}
		o.AllowUnverified = true
		if _, err := estargz.Open(t.Context(), bytes.NewReader(l.blob), int64(len(l.blob)), o); err == nil {
			t.Errorf("position %q: no error", position)
		}
	}
}

func TestNoTable(t *testing.T) {
	var ordinary bytes.Buffer
	tw := tar.NewWriter(&ordinary)
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	for name, blob := range map[string][]byte{
		"tar": ordinary.Bytes(), "one byte": {1}, "external table": append(make([]byte, 100), gzipFooter(51, "STARGZEXTERNALTOC-----")...),
	} {
		_, err := estargz.Open(t.Context(), bytes.NewReader(blob), int64(len(blob)), estargz.Options{})
		if !errors.Is(err, estargz.ErrNoTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, size := range []int64{0, -1, 1 << 60} {
		if _, err := estargz.Open(t.Context(), bytes.NewReader(nil), size, estargz.Options{}); err == nil {
			t.Errorf("size %d: no error", size)
		}
	}
}

func TestTruncatedBlob(t *testing.T) {
	for _, s := range styles {
		l := write(t, s, files())
		_, err := estargz.Open(t.Context(), bytes.NewReader(l.blob[:len(l.blob)-100]), int64(len(l.blob)), l.options())
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// TestFlippedBytes flips bytes anywhere: either Open or reading must notice, or
// the byte was in what nobody uses.
func TestFlippedBytes(t *testing.T) {
	r := rand.New(rand.NewSource(3))
	for _, s := range styles {
		l := write(t, s, files())
		for range 8 {
			blob := bytes.Clone(l.blob)
			at := r.Intn(len(blob))
			blob[at] ^= byte(1 + r.Intn(255))
			x, err := estargz.Open(t.Context(), bytes.NewReader(blob), int64(len(blob)), l.options())
			if err != nil {
				continue
			}
			failures, err := content.VerifyBlobs(t.Context(), &x.Tree, blobSource(blob), content.VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range failures {
				if len(f.Paths) == 0 || !errors.Is(f, content.ErrCorrupt) {
					t.Errorf("%s, byte %d: the error names no file: %v", s.name, at, f)
				}
			}
			if len(failures) > 0 {
				continue
			}
			reader := content.NewReader(&x.Tree, blobSource(blob), content.Options{})
			for _, f := range files() {
				checkFile(t, &x.Tree, reader, f)
			}
		}
	}
}
