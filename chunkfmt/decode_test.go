package chunkfmt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// cut is a section of a body.
type cut struct {
	id, flags uint16
	content   []byte
}

func cutBody(tb testing.TB, body []byte) []cut {
	tb.Helper()
	var all []cut
	for len(body) > 0 {
		id, flags, content, rest, err := anySection(body)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, cut{id, flags, slices.Clone(content)})
		body = rest
	}
	return all
}

func joinBody(cuts []cut) []byte {
	var w writer
	for _, c := range cuts {
		w.begin(c.id)
		binary.LittleEndian.PutUint16(w.p[len(w.p)-10:], c.flags)
		w.bytes(c.content)
		w.end()
	}
	return w.p
}

// withCount returns a body of a golden index with another number in its counts.
func withCount(tb testing.TB, body []byte, field int, v uint64) []byte {
	cuts := cutBody(tb, body)
	r := &reader{p: cuts[0].content}
	var w writer
	for i := range len((&counts{}).fields()) {
		old := r.uvarint()
		if i == field {
			old = v
		}
		w.uvarint(old)
	}
	cuts[0].content = w.p
	return joinBody(cuts)
}

func decodeBody(tb testing.TB, body []byte) error {
	tb.Helper()
	_, err := Decode(sealBody(tb, Header{Major: Major, Body: int64(len(body))}, body), Limits{})
	return err
}

func TestDecodeRefusesWrongCounts(t *testing.T) {
	for name, x := range goldenIndexes(t) {
		body := bodyOf(t, mustEncode(t, x))
		n := countsOf(&x.Tree)
		for field, v := range n.fields() {
			for _, wrong := range []uint64{*v - 1, *v + 1, 2 * *v, 1 << 20, 1<<32 - 1, 1 << 32, 1<<63 + *v, 1<<64 - 1} {
				if wrong == *v {
					continue
				}
				changed := withCount(t, body, field, wrong)
				p := sealBody(t, Header{Major: Major, Body: int64(len(changed))}, changed)
				var err error
				size := allocated(func() { _, err = Decode(p, Limits{}) })
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("%s: field %d is %d, not %d: %v", name, field, wrong, *v, err)
				}
				if size > 4<<20 {
					t.Errorf("%s: field %d is %d: %d bytes allocated", name, field, wrong, size)
				}
			}
		}
	}
}

func TestDecodeRefusesWrongSections(t *testing.T) {
	good := bodyOf(t, mustEncode(t, goldenPacked(t)))
	extra := cut{id: 100, flags: sectionIgnorable, content: []byte("new")}
	tests := map[string]struct {
		change func(c []cut) []cut
		ok     bool
	}{
		"as it is":            {func(c []cut) []cut { return c }, true},
		"missing":             {func(c []cut) []cut { return slices.Delete(c, 3, 4) }, false},
		"last missing":        {func(c []cut) []cut { return c[:len(c)-1] }, false},
		"twice":               {func(c []cut) []cut { return slices.Insert(c, 3, c[3]) }, false},
		"order":               {func(c []cut) []cut { c[1], c[2] = c[2], c[1]; return c }, false},
		"known and ignorable": {func(c []cut) []cut { c[2].flags = sectionIgnorable; return c }, false},
		"unknown flag":        {func(c []cut) []cut { c[2].flags = 2; return c }, false},
		"unknown, mandatory":  {func(c []cut) []cut { return append(c, cut{id: 100}) }, false},
		"unknown, ignorable":  {func(c []cut) []cut { return append(c, extra) }, true},
		"unknown flag too":    {func(c []cut) []cut { return append(c, cut{id: 100, flags: 3}) }, false},
		"unknown twice":       {func(c []cut) []cut { return append(c, extra, extra) }, false},
		"unknown in order":    {func(c []cut) []cut { return append(c, extra, cut{id: 101, flags: 1}) }, true},
		"unknown, no order":   {func(c []cut) []cut { return append(c, extra, cut{id: 99, flags: 1}) }, false},
		"unknown in between":  {func(c []cut) []cut { return slices.Insert(c, 3, extra) }, false},
		"empty":               {func(c []cut) []cut { c[5].content = nil; c[6].content = nil; return c }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := decodeBody(t, joinBody(tt.change(cutBody(t, good))))
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
	for i := range cutBody(t, good) {
		c := cutBody(t, good)
		c[i].content = append(c[i].content, 0)
		if err := decodeBody(t, joinBody(c)); !errors.Is(err, ErrInvalid) {
			t.Errorf("section %d with one byte too many: %v", c[i].id, err)
		}
	}
}

func TestDecodeRefusesWrongHeaders(t *testing.T) {
	x := goldenPacked(t)
	body := bodyOf(t, mustEncode(t, x))
	good := Header{Major: Major, Body: int64(len(body))}
	tests := map[string]struct {
		change func(h *Header)
		want   string // "" if it is accepted
	}{
		"as it is":         {func(*Header) {}, ""},
		"major 0":          {func(h *Header) { h.Major = 0 }, "version 0.0"},
		"major 2":          {func(h *Header) { h.Major, h.Minor = 2, 7 }, "version 2.7"},
		"minor":            {func(h *Header) { h.Minor = 9 }, ""},
		"required feature": {func(h *Header) { h.Required = 1 << 31 }, "0x80000000"},
		"optional feature": {func(h *Header) { h.Optional = 1 << 31 }, ""},
		"body too short":   {func(h *Header) { h.Body-- }, "bytes"},
		"body too long":    {func(h *Header) { h.Body++ }, "bytes"},
		"body endless":     {func(h *Header) { h.Body = -1 }, "bytes"},
		"body large":       {func(h *Header) { h.Body = 1 << 30 }, "bytes"},
		"body too large":   {func(h *Header) { h.Body = 1<<30 + 1 }, "at most"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := good
			tt.change(&h)
			_, err := Decode(sealBody(t, h, body), Limits{})
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
	p := mustEncode(t, x)
	p[atReserved] = 1
	sum := sumOf(p)
	copy(p[atSum:], sum[:])
	if _, err := Decode(p, Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("reserved field: %v", err)
	}
}

func TestDecodeHeader(t *testing.T) {
	x := goldenPacked(t)
	p := mustEncode(t, x)
	h, err := DecodeHeader(p[:HeaderSize])
	want := Header{
		Major: Major, Body: int64(len(bodyOf(t, p))), DiffID: x.DiffID, Root: x.Root, Sum: sumOf(p),
	}
	if err != nil || h != want {
		t.Errorf("%+v, %v; want %+v", h, err, want)
	}
	for _, short := range [][]byte{nil, p[:7], p[:HeaderSize-1], []byte("not an index at all, but long enough")} {
		if _, err := DecodeHeader(short); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %v", short, err)
		}
	}
}

func TestDecodeRefusesWrongFrames(t *testing.T) {
	body := bodyOf(t, mustEncode(t, goldenPacked(t)))
	frame, err := compress(body)
	if err != nil {
		t.Fatal(err)
	}
	streamed := func(opts ...zstd.EOption) []byte {
		var b bytes.Buffer
		enc, err := zstd.NewWriter(&b, opts...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enc.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := enc.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := enc.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	summed, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}
	// A frame that claims 1 GiB and has one empty last block.
	bomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x40, 1, 0, 0}
	tests := map[string]struct {
		frame []byte
		size  int
		ok    bool
	}{
		"as it is":         {frame, len(body), true},
		"with a checksum":  {summed.EncodeAll(body, nil), len(body), true},
		"no length":        {streamed(), len(body), false},
		"skippable before": {append(bytes.Clone(skippable), frame...), len(body), false},
		"skippable after":  {append(bytes.Clone(frame), skippable...), len(body), false},
		"two frames":       {append(bytes.Clone(frame), frame...), 2 * len(body), false},
		"nothing":          {nil, len(body), false},
		"not zstd":         {body, len(body), false},
		"cut off":          {frame[:len(frame)-1], len(body), false},
		"bomb":             {bomb, 1 << 30, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := seal(&Header{Major: Major, Body: int64(tt.size)}, tt.frame)
			var err error
			size := allocated(func() { _, err = Decode(p, Limits{}) })
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
			if size > 4<<20 {
				t.Errorf("%d bytes allocated", size)
			}
		})
	}
}

func TestReaderRefusesOtherNumbers(t *testing.T) {
	for name, p := range map[string][]byte{
		"not minimal":       {0x80, 0},
		"not minimal, long": {0xff, 0xff, 0x80, 0},
		"cut off":           {0x80},
		"nothing":           {},
		"65 bits":           {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2},
		"eleven bytes":      {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80, 1},
	} {
		r := &reader{p: p}
		if v := r.uvarint(); !errors.Is(r.err, ErrInvalid) || v != 0 {
			t.Errorf("%s: %d, %v", name, v, r.err)
		}
		if r.uvarint(); r.rest() != 0 {
			t.Errorf("%s: the error does not stick", name)
		}
	}
}
