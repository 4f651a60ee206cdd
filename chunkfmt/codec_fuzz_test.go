package chunkfmt

import (
	"errors"
	"testing"
)

// FuzzDecodeBody starts behind checksum and compression.
func FuzzDecodeBody(f *testing.F) {
	for _, x := range goldenIndexes(f) {
		f.Add(bodyOf(f, mustEncode(f, x)))
	}
	for seed := range uint64(4) {
		f.Add(bodyOf(f, mustEncode(f, randomIndex(f, seed, 4))))
	}
	f.Fuzz(checkBody)
}

func FuzzDecode(f *testing.F) {
	for _, x := range goldenIndexes(f) {
		f.Add(mustEncode(f, x))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > HeaderSize { // or hardly anything gets past the checksum
			d := sumOf(p)
			copy(p[atSum:], d[:])
		}
		x, err := Decode(p, Limits{Body: 1 << 20, Content: 1 << 16})
		switch {
		case err != nil && !errors.Is(err, ErrInvalid):
			t.Errorf("error %v", err)
		case err == nil:
			mustEncode(t, x)
		}
	})
}
