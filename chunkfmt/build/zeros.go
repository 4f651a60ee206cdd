package build

import (
	"crypto/sha256"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// zeros knows the digest of a whole chunk of zeros, which sparse files have a
// great many of.
type zeros struct {
	size int
	once sync.Once
	full chunkfmt.Digest
}

func (z *zeros) digest(n int) chunkfmt.Digest {
	if n != z.size {
		return zeroDigest(n)
	}
	z.once.Do(func() { z.full = zeroDigest(n) })
	return z.full
}

func zeroDigest(n int) chunkfmt.Digest {
	h := sha256.New()
	var block [chunkfmt.BlockSize]byte
	for ; n > 0; n -= len(block) {
		h.Write(block[:min(n, len(block))])
	}
	return sum(h)
}
