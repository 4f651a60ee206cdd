package chunkfmt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"reflect"
	"runtime"
	"testing"
)

func newHash() hash.Hash { return sha256.New() }

func mustEncode(tb testing.TB, x *Index) []byte {
	tb.Helper()
	p, err := Encode(x)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(100) {
		x := randomIndex(t, seed, 30)
		p := mustEncode(t, x)
		got, err := Decode(p, Limits{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(got, x) {
			t.Fatalf("seed %d: the decoded index differs: %s", seed, firstDifference(got, x))
		}
		if again := mustEncode(t, got); !bytes.Equal(again, p) {
			t.Fatalf("seed %d: encoded again, the bytes differ", seed)
		}
	}
}

func firstDifference(a, b *Index) string {
	va, vb := reflect.ValueOf(a.Tree), reflect.ValueOf(b.Tree)
	for i := range va.NumField() {
		if !reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
			return va.Type().Field(i).Name
		}
	}
	return "header"
}

func TestRoundTripOfNothing(t *testing.T) {
	tree, err := NewDraft().Freeze(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &Index{Tree: *tree}
	got, err := Decode(mustEncode(t, x), Limits{})
	if err != nil || !reflect.DeepEqual(got, x) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDecodeRefusesEveryTruncation(t *testing.T) {
	p := mustEncode(t, randomIndex(t, 3, 10))
	for n := range len(p) {
		if _, err := Decode(p[:n], Limits{}); !errors.Is(err, ErrInvalid) {
			t.Fatalf("%d of %d bytes: %v", n, len(p), err)
		}
	}
	if _, err := Decode(append(bytes.Clone(p), 0), Limits{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("one byte too many: %v", err)
	}
}

func TestDecodeRefusesEveryFlippedBit(t *testing.T) {
	p := mustEncode(t, randomIndex(t, 4, 5))
	for i := range p {
		for bit := range 8 {
			p[i] ^= 1 << bit
			if _, err := Decode(p, Limits{}); !errors.Is(err, ErrInvalid) {
				t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
			}
			p[i] ^= 1 << bit
		}
	}
}

func TestDecodeObeysLimits(t *testing.T) {
	var x *Index
	for seed := uint64(1); ; seed++ {
		x = randomIndex(t, seed, 20)
		if n := countsOf(&x.Tree); n.segments > 2 && n.holes > 0 && n.inline > 2 && n.blobs > 2 && n.xattrs > 1 {
			break
		}
	}
	p := mustEncode(t, x)
	n := countsOf(&x.Tree)
	content := int64(0)
	for _, r := range x.Runs {
		content += int64(r.Count)
	}
	h, err := DecodeHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	chunks := int(max(n.holes, n.chunks, n.runs, n.segments))
	for name, l := range map[string]struct{ enough, little Limits }{
		"body":    {Limits{Body: h.Body}, Limits{Body: h.Body - 1}},
		"inodes":  {Limits{Inodes: len(x.Inodes)}, Limits{Inodes: len(x.Inodes) - 1}},
		"entries": {Limits{Entries: len(x.Entries)}, Limits{Entries: len(x.Entries) - 1}},
		"attrs":   {Limits{Attrs: len(x.Attrs)}, Limits{Attrs: len(x.Attrs) - 1}},
		"chunks":  {Limits{Chunks: chunks}, Limits{Chunks: chunks - 1}},
		"content": {Limits{Content: content}, Limits{Content: content - 1}},
		"blobs":   {Limits{Blobs: len(x.Blobs)}, Limits{Blobs: len(x.Blobs) - 1}},
		"groups":  {Limits{Groups: int(n.groups)}, Limits{Groups: int(n.groups) - 1}},
		"inline":  {Limits{Inline: int64(len(x.Inline))}, Limits{Inline: int64(len(x.Inline)) - 1}},
	} {
		if _, err := Decode(p, l.enough); err != nil {
			t.Errorf("%s: just enough: %v", name, err)
		}
		if _, err := Decode(p, l.little); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: one too little: %v", name, err)
		}
	}
}

// sealBody returns an index with the given body.
func sealBody(tb testing.TB, h Header, body []byte) []byte {
	tb.Helper()
	compressed, err := compress(body)
	if err != nil {
		tb.Fatal(err)
	}
	return seal(&h, compressed)
}

// bodyOf returns the body of an index without checking it.
func bodyOf(tb testing.TB, p []byte) []byte {
	tb.Helper()
	h, err := DecodeHeader(p)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := decompress(p[HeaderSize:], h.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// allocated returns how many bytes do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestDecodeStartsNoGoroutines(t *testing.T) {
	p := mustEncode(t, randomIndex(t, 5, 20))
	before := runtime.NumGoroutine()
	for range 20 {
		if _, err := Decode(p, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}
