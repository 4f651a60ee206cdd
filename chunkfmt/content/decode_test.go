package content_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/klauspost/compress/zstd"
)

var codecs = []chunkfmt.Codec{chunkfmt.Plain, chunkfmt.Zstd, chunkfmt.Gzip}

func groupOf(codec chunkfmt.Codec, stored []byte, plain int) *chunkfmt.Group {
	return &chunkfmt.Group{Codec: codec, Stored: uint32(len(stored)), Plain: uint32(plain), Digest: chunkfmt.Sum(stored), Offset: 42}
}

func TestDecode(t *testing.T) {
	for _, codec := range codecs {
		for _, size := range []int{1, 100, 4096, 131072, 131073, 1_000_000} {
			for _, plain := range [][]byte{random(1, size), bytes.Repeat([]byte("a text. "), size/8+1)[:size]} {
				stored := compress(t, codec, plain)
				for _, dst := range [][]byte{nil, make([]byte, 7), make([]byte, 0, size), make([]byte, 0, 2*size+200_000)} {
					for _, proven := range []bool{true, false} {
						got, err := content.Decode(groupOf(codec, stored, size), proven, stored, dst)
						if err != nil || !bytes.Equal(got, plain) {
							t.Fatalf("%s, %d bytes into %d: %d bytes, %v", codec, size, cap(dst), len(got), err)
						}
						if proven && cap(dst) >= size && &got[:1][0] != &dst[:1][0] {
							t.Errorf("%s, %d bytes into %d: the memory was not used", codec, size, cap(dst))
						}
					}
				}
			}
		}
	}
}

// TestDecodeSeveral decodes groups of several members, and of frames that do
// not tell their size.
func TestDecodeSeveral(t *testing.T) {
	for _, codec := range codecs {
		var stored, plain []byte
		for i := range 5 {
			p := random(int64(i), 100_000*i)
			stored, plain = append(stored, compress(t, codec, p)...), append(plain, p...)
		}
		got, err := content.Decode(groupOf(codec, stored, len(plain)), true, stored, nil)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", codec, len(got), err)
		}
	}
	plain := bytes.Repeat(random(1, 1000), 1000)
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	for p := plain; len(p) > 0; p = p[10_000:] {
		if _, err := z.Write(p[:10_000]); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := content.Decode(groupOf(chunkfmt.Zstd, b.Bytes(), len(plain)), true, b.Bytes(), nil)
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("a stream: %d bytes, %v", len(got), err)
	}
	for _, n := range []int{1, 131_072, 400_000} {
		got, err := content.Decode(groupOf(chunkfmt.Zstd, b.Bytes(), n), false, b.Bytes(), nil)
		if err != nil || !bytes.Equal(got, plain[:n]) {
			t.Errorf("the first %d bytes of a stream: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestDecodePrefix(t *testing.T) {
	plain := random(1, 3_000_000)
	for _, codec := range codecs[1:] {
		stored := compress(t, codec, plain)
		for _, n := range []int{1, 100_000, 131_072, 2_000_000} {
			got, err := content.Decode(groupOf(codec, stored, n), false, stored, nil)
			if err != nil || !bytes.Equal(got, plain[:n]) {
				t.Errorf("%s: the first %d bytes: %d bytes, %v", codec, n, len(got), err)
			}
			if _, err := content.Decode(groupOf(codec, stored, n), true, stored, nil); !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%s: %d bytes of a proven group: %v", codec, n, err)
			}
		}
		// What is cut behind the bytes in need does not matter.
		if got, err := content.Decode(groupOf(codec, stored[:1_000_000], 100_000), false, stored[:1_000_000], nil); err != nil || !bytes.Equal(got, plain[:100_000]) {
			t.Errorf("%s, cut: %d bytes, %v", codec, len(got), err)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	plain := random(1, 10_000)
	for _, codec := range codecs {
		stored := compress(t, codec, plain)
		change := func(f func(*chunkfmt.Group)) *chunkfmt.Group {
			g := groupOf(codec, stored, len(plain))
			f(g)
			return g
		}
		for name, c := range map[string]struct {
			g      *chunkfmt.Group
			proven bool
			want   error
		}{
			"digest":     {change(func(g *chunkfmt.Group) { g.Digest[0]++ }), true, content.ErrCorrupt},
			"short":      {change(func(g *chunkfmt.Group) { g.Stored++ }), false, content.ErrCorrupt},
			"more plain": {change(func(g *chunkfmt.Group) { g.Plain++ }), true, content.ErrCorrupt},
			"less plain": {change(func(g *chunkfmt.Group) { g.Plain-- }), true, content.ErrCorrupt},
			"unproven":   {change(func(g *chunkfmt.Group) { g.Plain++ }), false, content.ErrCorrupt},
			"too large":  {change(func(g *chunkfmt.Group) { g.Plain = chunkfmt.MaxGroupPlain + 1 }), true, chunkfmt.ErrInvalid},
			"filler":     {change(func(g *chunkfmt.Group) { g.Codec = chunkfmt.Filler }), true, chunkfmt.ErrInvalid},
			"unknown":    {change(func(g *chunkfmt.Group) { g.Codec = 77 }), true, chunkfmt.ErrInvalid},
		} {
			if _, err := content.Decode(c.g, c.proven, stored, nil); !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v, want %v", codec, name, err, c.want)
			}
		}
	}
}

// FuzzDecode decodes any bytes as an Unproven group, and as a proven one whose
// index lies.
func FuzzDecode(f *testing.F) {
	plain := bytes.Repeat([]byte("a seed. "), 1000)
	for _, codec := range codecs {
		stored := compress(f, codec, plain)
		f.Add(uint8(codec), stored, uint32(len(plain)))
		f.Add(uint8(codec), stored, uint32(5))
		f.Add(uint8(codec), stored[:len(stored)/2], uint32(len(plain)))
	}
	f.Fuzz(func(t *testing.T, codec uint8, stored []byte, n uint32) {
		n %= 1 << 20
		for _, proven := range []bool{true, false} {
			got, err := content.Decode(groupOf(chunkfmt.Codec(codec), stored, int(n)), proven, stored, nil)
			if err == nil && len(got) != int(n) {
				t.Fatalf("%d bytes, want %d", len(got), n)
			}
			if cap(got) > int(n)+(256<<10)+len(stored) {
				t.Fatalf("%d bytes of memory for %d", cap(got), n)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	plain := make([]byte, 1<<20)
	copy(plain, bytes.Repeat(random(1, 3000), 1<<20/3000))
	for _, codec := range codecs {
		for _, proven := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/proven=%t", codec, proven), func(b *testing.B) {
				stored := compress(b, codec, plain)
				g := groupOf(codec, stored, len(plain))
				dst := make([]byte, 0, len(plain)+1<<18)
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := content.Decode(g, proven, stored, dst); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
