package frames_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/frames"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const limit = 1 << 20

func gzipMember(t testing.TB, plain []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name = "a name"
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// zstdFrame makes a frame that has its content's size in the header, and with
// stream one that does not.
func zstdFrame(t testing.TB, plain []byte, stream bool, o ...zstd.EOption) []byte {
	t.Helper()
	o = append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true)}, o...)
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, o...)
	if err != nil {
		t.Fatal(err)
	}
	if !stream {
		return w.EncodeAll(plain, nil)
	}
	for p := plain; len(p) > 0; {
		n := min(len(p), 100_000)
		if _, err := w.Write(p[:n]); err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func skippable(content string) []byte {
	n := len(content)
	return append([]byte{0x53, 0x2a, 0x4d, 0x18, byte(n), byte(n >> 8), 0, 0}, content...)
}

// contents are plain bytes of several sizes, from incompressible to constant.
func contents() [][]byte {
	r := rand.New(rand.NewSource(1))
	var all [][]byte
	for _, size := range []int{0, 1, 255, 256, 4096, 65536, 65793, 131072, 300_001, limit} {
		random := make([]byte, size)
		r.Read(random)
		text := bytes.Repeat([]byte("text that repeats, "), size/19+1)[:size]
		all = append(all, random, text, make([]byte, size))
	}
	return all
}

type part struct{ stored, plain []byte }

func parts(t testing.TB, f frames.Format) []part {
	t.Helper()
	var all []part
	for i, c := range contents() {
		if f == frames.Gzip {
			all = append(all, part{gzipMember(t, c, i%10), c})
			continue
		}
		all = append(all,
			part{zstdFrame(t, c, false), c},
			part{zstdFrame(t, c, true, zstd.WithEncoderCRC(false)), c},
			part{zstdFrame(t, c, false, zstd.WithSingleSegment(true)), c},
			part{skippable(fmt.Sprint("skipped ", i)), nil})
	}
	return all
}

func join(parts []part) (stored, plain []byte) {
	for _, p := range parts {
		stored = append(stored, p.stored...)
		plain = append(plain, p.plain...)
	}
	return stored, plain
}

func newReader(t testing.TB, r io.Reader, f frames.Format, maxPlain, maxStored int) *frames.Reader {
	t.Helper()
	fr, err := frames.NewReader(r, f, maxPlain, maxStored)
	if err != nil {
		t.Fatal(err)
	}
	return fr
}

var compressed = []frames.Format{frames.Gzip, frames.Zstd}

func TestFramesTileTheStream(t *testing.T) {
	for _, f := range compressed {
		all := parts(t, f)
		stored, _ := join(all)
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(stored),
			"half":  iotest.HalfReader(bytes.NewReader(stored)),
			"eof":   iotest.DataErrReader(bytes.NewReader(stored)),
		} {
			t.Run(fmt.Sprint(f, "/", name), func(t *testing.T) {
				fr := newReader(t, r, f, limit, limit+limit/8)
				offset := int64(0)
				for i, want := range all {
					got, err := fr.Next()
					if err != nil {
						t.Fatal(err)
					}
					if got.Offset != offset || !bytes.Equal(got.Stored, want.stored) || !bytes.Equal(got.Plain, want.plain) {
						t.Fatalf("frame %d: at %d with %d stored and %d plain bytes; want at %d with %d and %d", i,
							got.Offset, len(got.Stored), len(got.Plain), offset, len(want.stored), len(want.plain))
					}
					if got.Digest() != chunkfmt.Sum(want.stored) {
						t.Errorf("frame %d: digest %s", i, got.Digest())
					}
					offset += int64(len(want.stored))
				}
				for range 2 {
					if _, err := fr.Next(); err != io.EOF { //nolint:errorlint // Readers return it bare
						t.Errorf("after the last frame: %v", err)
					}
				}
			})
		}
	}
}

func TestTruncation(t *testing.T) {
	for _, f := range compressed {
		text := []byte(strings.Repeat("to be cut ", 50))
		last := gzipMember(t, text, 6)
		first := gzipMember(t, []byte("first"), 6)
		if f == frames.Zstd {
			first, last = zstdFrame(t, []byte("first"), true), zstdFrame(t, text, true)
		}
		for cut := 1; cut < len(last); cut++ {
			stream := append(bytes.Clone(first), last[:cut]...)
			fr := newReader(t, bytes.NewReader(stream), f, limit, limit)
			if _, err := fr.Next(); err != nil {
				t.Fatal(err)
			}
			if _, err := fr.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s cut after %d bytes: %v", f, cut, err)
			}
			if _, _, err := readPlain(bytes.NewReader(stream)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("plain %s cut after %d bytes: %v", f, cut, err)
			}
		}
	}
}

func TestWrongBytes(t *testing.T) {
	text := []byte(strings.Repeat("to be broken ", 50))
	for _, f := range compressed {
		good := gzipMember(t, text, 6)
		if f == frames.Zstd {
			good = zstdFrame(t, text, true)
		}
		broken := bytes.Clone(good)
		broken[len(broken)-2] ^= 1 // in the checksum
		for name, stream := range map[string][]byte{
			"zeros behind":   append(bytes.Clone(good), make([]byte, 512)...),
			"garbage behind": append(bytes.Clone(good), "garbage of some length"...),
			"checksum":       broken,
		} {
			fr := newReader(t, bytes.NewReader(stream), f, limit, limit)
			var err error
			for err == nil {
				_, err = fr.Next()
			}
			if !errors.Is(err, frames.ErrFormat) {
				t.Errorf("%s, %s: %v", f, name, err)
			}
			if _, _, err := readPlain(bytes.NewReader(stream)); err == nil {
				t.Errorf("plain %s, %s: no error", f, name)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	random := make([]byte, 300_000)
	rand.New(rand.NewSource(2)).Read(random)
	bomb := make([]byte, 8<<20)
	// 2,000 repeated bytes blocks, 250 MiB in 8 KB, of a frame that says nothing.
	blocks := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x50}, bytes.Repeat([]byte{0x02, 0, 0x10, 7}, 2000)...)
	for name, c := range map[string]struct {
		format frames.Format
		stored []byte
	}{
		"gzip bomb":             {frames.Gzip, gzipMember(t, bomb, 9)},
		"gzip stored":           {frames.Gzip, gzipMember(t, random, 0)},
		"zstd bomb":             {frames.Zstd, zstdFrame(t, bomb, false)},
		"zstd bomb, no size":    {frames.Zstd, zstdFrame(t, bomb, true)},
		"zstd repeated blocks":  {frames.Zstd, blocks},
		"zstd stored":           {frames.Zstd, zstdFrame(t, random, true)},
		"zstd skippable":        {frames.Zstd, skippable(string(random[:60_000]))},
		"zstd size in header":   {frames.Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 1}},
		"zstd skippable, empty": {frames.Zstd, []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}},
	} {
		t.Run(name, func(t *testing.T) {
			first := gzipMember(t, []byte("first"), 6)
			if c.format == frames.Zstd {
				first = zstdFrame(t, []byte("first"), true)
			}
			stream := append(bytes.Clone(first), c.stored...)
			stream = append(stream, first...)
			fr := newReader(t, bytes.NewReader(stream), c.format, 200_000, 50_000)
			if _, err := fr.Next(); err != nil {
				t.Fatal(err)
			}
			_, err := fr.Next()
			if errors.Is(err, io.ErrUnexpectedEOF) && len(c.stored) < 50_000 {
				return // the stream ended before the limit
			}
			if !errors.Is(err, frames.ErrTooLarge) {
				t.Fatalf("error %v", err)
			}
			if _, again := fr.Next(); !errors.Is(again, frames.ErrTooLarge) {
				t.Errorf("second call: %v", again)
			}
			rest, err := io.ReadAll(fr.Rest())
			if err != nil || !bytes.Equal(rest, stream[len(first):]) {
				t.Errorf("the rest has %d bytes, %v; want %d", len(rest), err, len(stream)-len(first))
			}
		})
	}
}

func TestRestBetweenFrames(t *testing.T) {
	all := parts(t, frames.Gzip)
	fr := newReader(t, iotest.HalfReader(bytes.NewReader(must(join(all)))), frames.Gzip, limit, 2*limit)
	for range 7 {
		if _, err := fr.Next(); err != nil {
			t.Fatal(err)
		}
	}
	want, _ := join(all[7:])
	rest, err := io.ReadAll(fr.Rest())
	if err != nil || !bytes.Equal(rest, want) {
		t.Errorf("the rest has %d bytes, %v; want %d", len(rest), err, len(want))
	}
}

func must(stored, _ []byte) []byte { return stored }

func TestReadErrorIsKept(t *testing.T) {
	broken := errors.New("connection reset")
	for _, f := range compressed {
		stored, _ := join(parts(t, f)[:5])
		fr := newReader(t, io.MultiReader(bytes.NewReader(stored), iotest.ErrReader(broken)), f, limit, 2*limit)
		var err error
		for err == nil {
			_, err = fr.Next()
		}
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestNewReaderRefuses(t *testing.T) {
	for _, c := range []struct {
		f                   frames.Format
		maxPlain, maxStored int
	}{{frames.Tar, 1, 1}, {frames.Gzip, 0, 1}, {frames.Zstd, 1, 0}, {9, 1, 1}} {
		if _, err := frames.NewReader(strings.NewReader(""), c.f, c.maxPlain, c.maxStored); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

func readPlain(r io.Reader) ([]byte, frames.Format, error) {
	plain, f, err := frames.Open(r)
	if err != nil {
		return nil, f, err
	}
	got, err := io.ReadAll(plain)
	if err2 := plain.Close(); err == nil {
		err = err2
	}
	return got, f, err
}

func TestOpen(t *testing.T) {
	for _, f := range compressed {
		stored, want := join(parts(t, f))
		got, detected, err := readPlain(iotest.HalfReader(bytes.NewReader(stored)))
		if err != nil || detected != f || !bytes.Equal(got, want) {
			t.Errorf("%s: detected %s, %d plain bytes, %v; want %d", f, detected, len(got), err, len(want))
		}
	}
	for _, tar := range []string{"", "a", "usr/bin/"} {
		got, f, err := readPlain(strings.NewReader(tar))
		if err != nil || f != frames.Tar || string(got) != tar {
			t.Errorf("%q: detected %s, got %q, %v", tar, f, got, err)
		}
	}
	if _, _, err := frames.Open(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("broken input: %v", err)
	}
}

func TestDetectLeavesTheBytes(t *testing.T) {
	br := bufio.NewReader(strings.NewReader("\x1f\x8b\x08rest"))
	if f, err := frames.Detect(br); f != frames.Gzip || err != nil {
		t.Errorf("detected %s, %v", f, err)
	}
	if rest, _ := io.ReadAll(br); len(rest) != 7 {
		t.Errorf("%d bytes are left", len(rest))
	}
	if f, _ := frames.Detect(bufio.NewReader(bytes.NewReader(skippable("x")))); f != frames.Zstd {
		t.Errorf("detected %s for a skippable frame", f)
	}
}

// FuzzReader checks that whatever is accepted tiles the input, and that the
// stream readers agree about it.
func FuzzReader(f *testing.F) {
	for _, format := range compressed {
		for _, p := range parts(f, format)[:12] {
			f.Add(p.stored)
		}
		stored, _ := join(parts(f, format)[:9])
		f.Add(stored)
		f.Add(append(stored, 0))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		format, err := frames.Detect(bufio.NewReader(bytes.NewReader(in)))
		if err != nil || format == frames.Tar {
			return
		}
		fr := newReader(t, bytes.NewReader(in), format, limit, limit)
		var stored, plain []byte
		for {
			frame, err := fr.Next()
			if err == io.EOF { //nolint:errorlint // Readers return it bare
				break
			}
			if err != nil {
				return
			}
			if len(frame.Stored) == 0 || len(frame.Stored) > limit || len(frame.Plain) > limit {
				t.Fatalf("a frame of %d stored and %d plain bytes", len(frame.Stored), len(frame.Plain))
			}
			if frame.Offset != int64(len(stored)) {
				t.Fatalf("a frame at %d follows %d bytes", frame.Offset, len(stored))
			}
			stored, plain = append(stored, frame.Stored...), append(plain, frame.Plain...)
		}
		if !bytes.Equal(stored, in) {
			t.Fatal("the frames do not tile the input")
		}
		got, _, err := readPlain(bytes.NewReader(in))
		if err == nil && !bytes.Equal(got, plain) {
			t.Fatal("the stream reader gives other bytes")
		}
	})
}
