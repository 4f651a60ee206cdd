package scheduler

// FNV-1a parameters for 64 bits.
const (
	fnvOffset = 0xcbf29ce484222325
	fnvPrime  = 0x100000001b3
)

// hashStrings hashes the fields, each closed by a byte that occurs in no UTF-8
// text, so that moving a letter from one field to the next changes the hash.
func hashStrings(fields ...string) uint64 {
	h := uint64(fnvOffset)
	for _, f := range fields {
		for i := range len(f) {
			h = (h ^ uint64(f[i])) * fnvPrime
		}
		h = (h ^ 0xff) * fnvPrime
	}
	return mix(h)
}

// mix is the finalizer of SplitMix64: it makes every bit of the result depend
// on every bit of x, which FNV alone does not.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// hashPiece orders pieces differently for each seed.
func hashPiece(seed uint64, piece int) uint64 {
	return mix(seed + uint64(piece)*0x9e3779b97f4a7c15) //nolint:gosec // pieces are not negative, and a wrap would do no harm
}
