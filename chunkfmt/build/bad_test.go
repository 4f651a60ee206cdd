package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
)

// mustFail returns the error of a build that leaves nothing behind.
func mustFail(t *testing.T, o build.Options, layers ...build.Layer) error {
	t.Helper()
	dir := t.TempDir()
	_, err := build.Build(t.Context(), layers, dir, o)
	if err == nil {
		t.Fatal("no error")
	}
	if left := entriesOf(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return err
}

func TestBadTars(t *testing.T) {
	device := header{tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 13}, nil}
	owner := file("f", nil)
	owner.Uid, owner.Format = 1<<32-1, tar.FormatPAX
	odd := file("f", nil)
	odd.Typeflag = 'Z'
	noTarget := makeTar(t, symlink("s", "target"))
	for name, c := range map[string]struct {
		tar  []byte
		want string
	}{
		"parent is a file":     {makeTar(t, file("f", nil), file("f/x", nil)), `"f/x"`},
		"loop of links":        {makeTar(t, symlink("a", "b"), symlink("b", "a"), file("a/x", nil)), "too many symbolic links"},
		"link to nowhere":      {makeTar(t, hardlink("h", "nowhere")), "nowhere"},
		"link to a directory":  {makeTar(t, dir("d"), hardlink("h", "d")), "directory"},
		"link to itself":       {makeTar(t, hardlink("h", "h")), "h"},
		"link to a whiteout":   {makeTar(t, file(".wh.f", nil), hardlink("h", "f")), "removes"},
		"whiteout of nothing":  {makeTar(t, file(".wh.", nil)), "whiteout"},
		"whiteout of a parent": {makeTar(t, file("d/.wh...", nil)), "whiteout"},
		"256-byte name":        {makeTar(t, file(strings.Repeat("n", 256), nil)), "256 bytes"},
		"4096-byte path":       {makeTar(t, file(strings.Repeat("d/", 2047)+"xx", nil)), "4096 bytes"},
		"device number":        {makeTar(t, device), "device number"},
		"owner":                {makeTar(t, owner), "owner"},
		"unknown type":         {makeTar(t, odd), "type"},
		"empty target":         {fixHeader(bytes.Replace(noTarget, []byte("target"), make([]byte, 6), 1)), "target"},
		"no tar":               {words(1, 5000), "reading the tar"},
	} {
		t.Run(name, func(t *testing.T) {
			err := mustFail(t, small, gzipped(t, c.tar))
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// fixHeader corrects the checksum of the first header.
func fixHeader(p []byte) []byte {
	sum := 8 * int(' ')
	for i, b := range p[:512] {
		if i < 148 || i >= 156 {
			sum += int(b)
		}
	}
	for i := 153; i >= 148; i-- {
		p[i] = byte('0' + sum&7)
		sum >>= 3
	}
	p[154], p[155] = 0, ' '
	return p
}

func TestTruncated(t *testing.T) {
	plain := tree(t)
	for _, format := range []string{"tar", "gzip", "zstd"} {
		for _, parts := range [][][]byte{{plain}, cut(t, plain, 8192)} {
			stored := compress(t, format, parts...)
			for _, n := range []int{10, 700, len(stored) / 2, len(stored) - 2000} {
				if format != "tar" {
					_ = mustFail(t, small, layer(stored[:n], nil))
				}
				l := layer(stored[:n], nil)
				l.Digest, l.Size = chunkfmt.Sum(stored), -1
				_ = mustFail(t, small, l)
			}
		}
	}
}

func TestMismatch(t *testing.T) {
	plain := tree(t)
	for name, parts := range map[string][][]byte{"new blob": {plain}, "in place": cut(t, plain, 8192)} {
		for what, change := range map[string]func(*build.Layer){
			"digest":  func(l *build.Layer) { l.Digest[3]++ },
			"DiffID":  func(l *build.Layer) { l.DiffID[3]++ },
			"shorter": func(l *build.Layer) { l.Size-- },
			"longer":  func(l *build.Layer) { l.Size++ },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				l := layer(compress(t, "gzip", parts...), plain)
				l.Name = "the-layer"
				change(&l)
				err := mustFail(t, small, gzipped(t, plain), l)
				if !errors.Is(err, build.ErrMismatch) || !strings.Contains(err.Error(), "the-layer") {
					t.Errorf("error %q", err)
				}
			})
		}
	}
}

func TestBitFlips(t *testing.T) {
	plain := tree(t)
	for _, parts := range [][][]byte{{plain}, cut(t, plain, 8192)} {
		stored := compress(t, "gzip", parts...)
		for at := 0; at < len(stored); at += len(stored) / 20 {
			bad := bytes.Clone(stored)
			bad[at] ^= 0x10
			l := layer(bad, nil)
			l.Digest = chunkfmt.Sum(stored)
			_ = mustFail(t, small, l)
		}
	}
}

func TestLimits(t *testing.T) {
	bomb := makeTar(t, file("zeros", make([]byte, 50<<20)))
	hole := sparse(t, "sparse", 1<<42, []int64{5}, []byte("x"))
	many := makeTar(t, file("a", nil), file("b", nil), file("c", nil))
	lying := bytes.Clone(makeTar(t, file("f", []byte("x"))))
	for name, c := range map[string]struct {
		tar []byte
		o   build.Options
	}{
		"bomb":    {bomb, build.Options{MaxPlain: 1 << 20}},
		"hole":    {hole, build.Options{}},
		"entries": {many, build.Options{MaxEntries: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := mustFail(t, c.o, gzipped(t, c.tar)); !errors.Is(err, build.ErrLimit) {
				t.Errorf("error %q", err)
			}
		})
	}
	// A size in the header that nothing stands behind allocates nothing.
	copy(lying[124:], "77777777777\x00")
	_ = mustFail(t, build.Options{}, gzipped(t, fixHeader(lying)))
}

func TestBadOptions(t *testing.T) {
	l := gzipped(t, makeTar(t))
	for i, o := range []build.Options{
		{ChunkSize: 5000}, {ChunkSize: 2048}, {ChunkSize: 32 << 20}, {ChunkSize: 1 << 20, GroupSize: 4096}, {GroupSize: 32 << 20},
		{Codec: 7}, {Level: 23}, {Level: -1}, {InlineMax: 5000}, {InlineMax: -2}, {Mode: 9}, {Workers: -1}, {MemoryLimit: 1},
		{MaxPlain: -1}, {Mode: build.AsImage, Codec: build.Plain}, {Mode: build.AsImage, Trace: []build.Access{{Path: "x"}}},
		{Mode: build.AsImage, Dictionary: []*chunkfmt.Index{{}}}, {Trace: []build.Access{{}}}, {Trace: []build.Access{{Path: "x", Offset: -1}}},
	} {
		if _, err := build.Build(t.Context(), []build.Layer{l}, t.TempDir(), o); err == nil {
			t.Errorf("options %d are accepted", i)
		}
	}
	if _, err := build.Build(t.Context(), nil, t.TempDir(), build.Options{}); err == nil {
		t.Error("no layers are accepted")
	}
	if _, err := build.Build(t.Context(), []build.Layer{gzipped(t, tree(t))}, t.TempDir()+"/none", small); err == nil {
		t.Error("a directory that does not exist is accepted")
	}
}

func TestOpenFails(t *testing.T) {
	failed := errors.New("no such blob")
	l := build.Layer{Name: "gone", Size: -1, Open: func(context.Context) (io.ReadCloser, error) { return nil, failed }}
	if err := mustFail(t, small, gzipped(t, tree(t)), l); !errors.Is(err, failed) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("error %q", err)
	}
}

// stopping cancels a build after some bytes and then, if it is to hang, returns
// nothing until its own context ends.
type stopping struct {
	io.Reader
	after  int
	cancel context.CancelCauseFunc
	hang   <-chan struct{}
}

var errStopped = errors.New("stopped by the test")

func (s *stopping) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p[:min(len(p), 4096)])
	if s.after -= n; s.after <= 0 {
		s.cancel(errStopped)
		if s.hang != nil {
			<-s.hang
			return 0, io.ErrClosedPipe
		}
	}
	return n, err
}

func TestCancel(t *testing.T) {
	plain := tree(t)
	before := runtime.NumGoroutine()
	for _, mode := range []build.Mode{build.NewBlob, build.AsImage, build.Auto} {
		stored := compress(t, "gzip", cut(t, plain, 8192)...)
		for after := 0; after <= len(stored); after += len(stored) / 7 {
			dir := t.TempDir()
			ctx, cancel := context.WithCancelCause(t.Context())
			l := layer(stored, plain)
			l.Open = func(own context.Context) (io.ReadCloser, error) {
				s := &stopping{Reader: bytes.NewReader(stored), after: after, cancel: cancel}
				if after%2 == 0 {
					s.hang = own.Done()
				}
				return io.NopCloser(s), nil
			}
			o := small
			o.Mode = mode
			_, err := build.Build(ctx, []build.Layer{gzipped(t, plain), l, gzipped(t, plain)}, dir, o)
			if !errors.Is(err, errStopped) {
				t.Errorf("after %d bytes: %v", after, err)
			}
			if left := entriesOf(t, dir); len(left) > 0 {
				t.Errorf("after %d bytes: left %v", after, left)
			}
			cancel(nil)
		}
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

func FuzzTar(f *testing.F) {
	seed := makeTar(f, dir("d"), file("d/a", words(1, 9000)), file("d/b", random(2, 5000)), file("d/c", words(3, 50)))
	f.Add(seed, uint8(0))
	f.Add(sparse(f, "sparse", 100000, []int64{5, 50000}, []byte("data")), uint8(2))
	f.Add(makeTar(f, dir("d"), symlink("d/l", ".."), hardlink("h", "d/l"), file(".wh.x", nil), file("d/.wh..wh..opq", nil)), uint8(1))
	f.Add(compress(f, "gzip", cut(f, seed, 4096)...), uint8(0))
	f.Add(compress(f, "zstd", cut(f, seed, 1000)...), uint8(0))
	f.Fuzz(func(t *testing.T, p []byte, mode uint8) {
		o := small
		o.Mode = build.Mode(mode % 3)
		o.MaxPlain, o.MaxEntries, o.MemoryLimit = 4<<20, 1000, 32<<20
		dir := t.TempDir()
		r, err := build.Build(t.Context(), []build.Layer{layer(p, nil)}, dir, o)
		if err != nil {
			if left := entriesOf(t, dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			return
		}
		b := &built{Result: r, dir: dir, stored: map[chunkfmt.Digest][]byte{chunkfmt.Sum(p): p}}
		b.check(t)
		_ = b.files(t)
	})
}

func FuzzTrace(f *testing.F) {
	f.Add("/usr/bin/x\n{\"path\":\"a\",\"offset\":5,\"length\":7}\n")
	f.Add("{")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := build.ParseTrace(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, a := range list {
			if a.Path == "" || a.Offset < 0 || a.Length < 0 {
				t.Errorf("access %+v", a)
			}
		}
	})
}

func TestDigestsWithoutHashingTwice(t *testing.T) {
	plain := tree(t)
	for name, stored := range map[string][]byte{"tar": plain, "gzip": compress(t, "gzip", plain)} {
		t.Run(name, func(t *testing.T) {
			want := mustBuild(t, small, layer(stored, plain)).Layers[0].Index
			l := layer(stored, nil)
			l.Verified = true
			if got := mustBuild(t, small, l).Layers[0].Index; got.DiffID != want.DiffID || got.Root != want.Root {
				t.Errorf("DiffID %s and root %s, want %s and %s", got.DiffID, got.Root, want.DiffID, want.Root)
			}
			l.DiffID = chunkfmt.Sum([]byte("other"))
			if err := mustFail(t, small, l); !errors.Is(err, build.ErrMismatch) {
				t.Errorf("wrong DiffID: %v", err)
			}
			l = layer(stored, nil)
			l.Digest, l.Verified = chunkfmt.Digest{}, true
			if got := mustBuild(t, small, l).Layers[0].Index; got.DiffID != want.DiffID {
				t.Errorf("without a digest: DiffID %s, want %s", got.DiffID, want.DiffID)
			}
		})
	}
}
