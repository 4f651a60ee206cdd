package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/klauspost/compress/zstd"
)

var someTime = time.Unix(1700000000, 123456789)

// header is an entry of a tar and its content.
type header struct {
	tar.Header
	body []byte
}

func file(name string, body []byte) header {
	return header{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: someTime, Format: tar.FormatPAX}, body}
}

func dir(name string) header {
	return header{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: someTime, Format: tar.FormatPAX}, nil}
}

func symlink(name, target string) header {
	return header{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: someTime}, nil}
}

func hardlink(name, target string) header {
	return header{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: someTime, Format: tar.FormatPAX}, nil}
}

func makeTar(t testing.TB, entries ...header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sparse returns a tar with one file in GNU's PAX format 1.0: data at each
// place, zeros between, size in all.
func sparse(t testing.TB, name string, size int64, places []int64, data []byte) []byte {
	t.Helper()
	m := fmt.Sprintf("%d\n", len(places))
	body := make([]byte, 0, 1<<16)
	for _, p := range places {
		m += fmt.Sprintf("%d\n%d\n", p, len(data))
		body = append(body, data...)
	}
	head := make([]byte, (len(m)+511)/512*512)
	copy(head, m)
	h := file(name, append(head, body...))
	h.PAXRecords = map[string]string{
		"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": name,
		"XNU.sparse.realsize": fmt.Sprint(size),
	}
	// The writer of the standard library refuses to write such records.
	return bytes.ReplaceAll(makeTar(t, h), []byte("XNU.sparse"), []byte("GNU.sparse"))
}

// random returns n bytes that do not compress and depend on seed.
func random(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	p := make([]byte, n)
	_, _ = r.Read(p)
	return p
}

// words returns n bytes that compress.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var out bytes.Buffer
	for out.Len() < n {
		fmt.Fprintf(&out, "line %d of %d: %x\n", r.IntN(1000), seed, r.Uint32())
	}
	return out.Bytes()[:n]
}

func compress(t testing.TB, format string, parts ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, p := range parts {
		switch format {
		case "tar":
			out.Write(p)
		case "gzip":
			w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = w.Write(p)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		case "zstd":
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			out.Write(w.EncodeAll(p, nil))
		default:
			t.Fatal(format)
		}
	}
	return out.Bytes()
}

// layer returns a layer with all that is known about it.
func layer(stored, plain []byte) build.Layer {
	l := build.Layer{
		Name: "test", Digest: chunkfmt.Sum(stored), Size: int64(len(stored)),
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stored)), nil },
	}
	if plain != nil {
		l.DiffID = chunkfmt.Sum(plain)
	}
	return l
}

func gzipped(t testing.TB, plain []byte) build.Layer {
	t.Helper()
	return layer(compress(t, "gzip", plain), plain)
}

// built is a result with all that is needed to read it.
type built struct {
	*build.Result
	dir    string
	stored map[chunkfmt.Digest][]byte // all layers and blobs
}

// blobs reads blobs that are made and layers that are blobs themselves.
type blobs struct{ b *built }

func (s blobs) ReadAt(_ context.Context, b *chunkfmt.Blob, p []byte, off int64) error {
	data := s.b.stored[b.Digest]
	if int64(len(data)) != b.Size || off+int64(len(p)) > b.Size {
		return io.ErrUnexpectedEOF
	}
	copy(p, data[off:])
	return nil
}

func mustBuild(t testing.TB, o build.Options, layers ...build.Layer) *built {
	t.Helper()
	b := &built{dir: t.TempDir(), stored: map[chunkfmt.Digest][]byte{}}
	for _, l := range layers {
		r, _ := l.Open(t.Context())
		p, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		b.stored[chunkfmt.Sum(p)] = p
	}
	var err error
	if b.Result, err = build.Build(t.Context(), layers, b.dir, o); err != nil {
		t.Fatal(err)
	}
	b.check(t)
	return b
}

// check checks what holds of every result.
func (b *built) check(t testing.TB) {
	t.Helper()
	want := map[string]bool{}
	for i, l := range b.Layers {
		if err := l.Index.Validate(); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
		x, err := chunkfmt.Decode(l.Encoded, chunkfmt.Limits{})
		if err != nil || x.Root != l.Index.Root || x.DiffID != l.Index.DiffID {
			t.Errorf("layer %d: decoded %v, %v", i, x, err)
		}
		files := l.Blobs
		if l.Image != nil {
			files = append(files, *l.Image)
		}
		for _, f := range files {
			want[filepath.Base(f.Path)] = true
			p, err := os.ReadFile(f.Path)
			if err != nil || chunkfmt.Sum(p) != f.Digest || int64(len(p)) != f.Size {
				t.Errorf("blob %s of %d bytes: %d bytes, %v", f.Digest, f.Size, len(p), err)
			}
			b.stored[f.Digest] = p
		}
		s := l.Stats
		if sum := s.Inline + s.Holes + s.New + s.FromLayer + s.FromImage + s.FromDictionary; sum != s.Content {
			t.Errorf("layer %d: %d bytes of content, but %+v", i, sum, s)
		}
	}
	for _, e := range entriesOf(t, b.dir) {
		if !want[e] {
			t.Errorf("%s is left behind", e)
		}
	}
	failures, err := content.VerifyBlobs(t.Context(), b.merged(t), blobs{b}, content.VerifyOptions{})
	if err != nil || len(failures) > 0 {
		t.Errorf("verifying: %v, %v", failures, err)
	}
}

func entriesOf(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names
}

func (b *built) merged(t testing.TB) *chunkfmt.Tree {
	t.Helper()
	var trees []*chunkfmt.Tree
	for _, l := range b.Layers {
		trees = append(trees, &l.Index.Tree)
	}
	m, err := chunkfmt.Merge(trees...)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ValidateMerged(); err != nil {
		t.Fatal(err)
	}
	return m
}

// files returns the content of all files of the merged tree.
func (b *built) files(t testing.TB) map[string][]byte {
	t.Helper()
	m := b.merged(t)
	r := content.NewReader(m, blobs{b}, content.Options{})
	out := map[string][]byte{}
	for name, inode := range m.Walk() {
		if m.Kind(inode) != chunkfmt.File {
			continue
		}
		f, err := r.Open(t.Context(), inode)
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = p
	}
	return out
}

// wantFiles compares the merged tree's files with those of tars that have only
// files and directories.
func (b *built) wantFiles(t testing.TB, tars ...[]byte) {
	t.Helper()
	want := map[string][]byte{}
	for _, p := range tars {
		r := tar.NewReader(bytes.NewReader(p))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
				continue
			}
			if want[strings.TrimPrefix(path.Clean("/"+h.Name), "/")], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	have := b.files(t)
	for name, p := range want {
		if !bytes.Equal(p, have[name]) {
			t.Errorf("%s has %d bytes, want %d (or others)", name, len(have[name]), len(p))
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("%s is too much", name)
	}
}

// list describes the entries of a tree, one line each.
func list(t *chunkfmt.Tree) string {
	var out strings.Builder
	kinds := "dflcbpswh"
	for name, i := range t.Walk() {
		n, a := &t.Inodes[i], t.Attr(i)
		fmt.Fprintf(&out, "%c %04o %d:%d %d.%09d n%d s%d %q", kinds[a.Kind], a.Mode, a.UID, a.GID, n.Mtime, n.Nsec, n.Nlink, n.Size, name)
		if a.Kind == chunkfmt.Symlink || a.Kind == chunkfmt.LinkOut {
			fmt.Fprintf(&out, " -> %q", t.Target(i))
		}
		if a.Flags != 0 {
			fmt.Fprintf(&out, " flags %d", a.Flags)
		}
		for _, x := range t.XattrsOf(i) {
			fmt.Fprintf(&out, " %s=%q", x.Name, x.Value)
		}
		out.WriteByte('\n')
	}
	return out.String()
}
