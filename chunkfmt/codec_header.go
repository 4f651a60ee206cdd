package chunkfmt

import (
	"crypto/sha256"
	"encoding/binary"
)

// Magic opens every index. Like PNG's it shows what a transfer that means text
// does to a file.
const Magic = "\x89DFX\r\n\x1a\n"

// The version of the format that Encode writes.
const (
	// Major changes when readers of the version before would misread what is
	// written: they refuse it.
	Major = 1
	// Minor grows when something is added that older readers may ignore.
	Minor = 0
)

// HeaderSize is the length in bytes of the header in front of the body.
const HeaderSize = 128

// Places in the header.
const (
	atMajor    = 8
	atMinor    = 10
	atRequired = 12
	atOptional = 16
	atReserved = 20
	atBody     = 24
	atDiffID   = 32
	atRoot     = 64
	atSum      = 96
)

// knownFeatures are the required features that Decode knows.
const knownFeatures uint32 = 0

// Header is what the first HeaderSize bytes of an index say.
type Header struct {
	Major, Minor uint16
	// Required and Optional are sets of features. A reader refuses an index
	// with a required one that it does not know.
	Required, Optional uint32
	// Body is the length in bytes of the decompressed body.
	Body int64
	// DiffID and Root as in Index.
	DiffID Digest
	Root   Digest
	// Sum is the SHA-256 of the header before it and the compressed body.
	Sum Digest
}

// DecodeHeader reads the header at the front of p, which may be all of an index
// or only its first HeaderSize bytes. It cannot check Sum, so the rest is as
// trustworthy as where p is from.
func DecodeHeader(p []byte) (Header, error) {
	var h Header
	if len(p) < len(Magic) || string(p[:len(Magic)]) != Magic {
		return h, invalid("not an index: wrong magic number")
	}
	if len(p) < HeaderSize {
		return h, invalid("%d bytes, the header alone has %d", len(p), HeaderSize)
	}
	h.Major = binary.LittleEndian.Uint16(p[atMajor:])
	h.Minor = binary.LittleEndian.Uint16(p[atMinor:])
	h.Required = binary.LittleEndian.Uint32(p[atRequired:])
	h.Optional = binary.LittleEndian.Uint32(p[atOptional:])
	body := binary.LittleEndian.Uint64(p[atBody:])
	if h.Major != Major {
		return h, invalid("version %d.%d is not supported, only %d", h.Major, h.Minor, Major)
	}
	if unknown := h.Required &^ knownFeatures; unknown != 0 {
		return h, invalid("unknown required features %#x", unknown)
	}
	if reserved := binary.LittleEndian.Uint32(p[atReserved:]); reserved != 0 {
		return h, invalid("reserved field is %#x", reserved)
	}
	if body > 1<<62 {
		return h, invalid("a body of %d bytes", body)
	}
	h.Body = int64(body)
	h.DiffID = Digest(p[atDiffID:atRoot])
	h.Root = Digest(p[atRoot:atSum])
	h.Sum = Digest(p[atSum:HeaderSize])
	return h, nil
}

// seal returns an index of a header and a compressed body; it sets h.Sum.
func seal(h *Header, compressed []byte) []byte {
	p := make([]byte, HeaderSize, HeaderSize+len(compressed))
	copy(p, Magic)
	binary.LittleEndian.PutUint16(p[atMajor:], h.Major)
	binary.LittleEndian.PutUint16(p[atMinor:], h.Minor)
	binary.LittleEndian.PutUint32(p[atRequired:], h.Required)
	binary.LittleEndian.PutUint32(p[atOptional:], h.Optional)
	binary.LittleEndian.PutUint64(p[atBody:], uint64(h.Body)) //nolint:gosec // a length
	copy(p[atDiffID:], h.DiffID[:])
	copy(p[atRoot:], h.Root[:])
	p = append(p, compressed...)
	h.Sum = sumOf(p)
	copy(p[atSum:], h.Sum[:])
	return p
}

// sumOf returns what the Sum of an index must be.
func sumOf(p []byte) Digest {
	var d Digest
	sum := sha256.New()
	sum.Write(p[:atSum])
	sum.Write(p[HeaderSize:])
	sum.Sum(d[:0])
	return d
}
