package chunkfmt

import (
	"fmt"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// maxBlock bounds what one block of a zstd frame decodes to (RFC 8878).
const maxBlock = 128 << 10

// compress returns p as one zstd frame. It starts no goroutines.
func compress(p []byte) ([]byte, error) {
	// Encoders allocate in proportion to their window.
	window := min(max(1<<bits.Len(uint(len(p))), zstd.MinWindowSize), 8<<20)
	enc, err := zstd.NewWriter(nil,
		zstd.WithWindowSize(window),
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderConcurrency(1),
		zstd.WithSingleSegment(true), // the frame has its length
		zstd.WithEncoderCRC(false))   // the header has a SHA-256
	if err != nil {
		return nil, fmt.Errorf("compress index: %w", err)
	}
	out := enc.EncodeAll(p, nil)
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("compress index: %w", err)
	}
	return out, nil
}

// decompress decodes a frame of exactly size bytes.
func decompress(frame []byte, size int64) ([]byte, error) {
	if err := checkFrame(frame, size); err != nil {
		return nil, err
	}
	// The output is also the window, so windows of any size cost nothing more.
	limit := uint64(max(size, zstd.MinWindowSize))
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(limit),
		zstd.WithDecoderMaxWindow(max(limit, zstd.MaxWindowSize)))
	if err != nil {
		return nil, fmt.Errorf("decompress index: %w", err)
	}
	defer dec.Close()
	p, err := dec.DecodeAll(frame, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: body: %w", ErrInvalid, err)
	}
	if int64(len(p)) != size {
		return nil, invalid("the body has %d bytes, not %d", len(p), size)
	}
	return p, nil
}

// checkFrame makes sure that p is one zstd frame that says it has size bytes,
// and has blocks enough to come near it: decoders allocate what a frame claims.
func checkFrame(p []byte, size int64) error {
	var h zstd.Header
	if err := h.Decode(p); err != nil {
		return fmt.Errorf("%w: body: %w", ErrInvalid, err)
	}
	if h.Skippable || h.DictionaryID != 0 || !h.HasFCS {
		return invalid("the body is not a zstd frame of known length without dictionary")
	}
	if h.FrameContentSize != uint64(size) { //nolint:gosec // not negative
		return invalid("the body has %d bytes, not %d", h.FrameContentSize, size)
	}
	at, bound := h.HeaderSize, int64(0)
	for last := false; !last; {
		if len(p)-at < 3 {
			return invalid("the body is cut off")
		}
		block := int(p[at]) | int(p[at+1])<<8 | int(p[at+2])<<16
		at += 3
		last = block&1 != 0
		length := block >> 3
		switch block >> 1 & 3 {
		case 0: // raw
			bound += int64(length)
		case 1: // one byte, repeated
			bound += int64(length)
			length = 1
		default:
			bound += maxBlock
		}
		if length > len(p)-at {
			return invalid("the body is cut off")
		}
		at += length
	}
	if h.HasCheckSum {
		at += 4
	}
	if at != len(p) || bound < size {
		return invalid("the body is not one zstd frame of %d bytes", size)
	}
	return nil
}
