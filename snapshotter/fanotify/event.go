package fanotify

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// The layout of events, from linux/fanotify.h: 24 bytes of metadata, then
// records, each with a header of four bytes (type, padding, length).
const (
	metadataLen    = 24
	recordHeader   = 4
	rangeRecordLen = 24
	eventVersion   = 3

	atVersion     = 4
	atMetadataLen = 6
	atMask        = 8
	atFD          = 16

	atRangeOffset = 8
	atRangeCount  = 16
)

// event is one event as the kernel reports it.
type event struct {
	mask uint64
	// fd is the number of the descriptor that came with it, in the process that
	// read the event; negative if none came: then the kernel has refused the
	// access by itself.
	fd int32
	// off and n are what is read; n is -1 if the kernel did not say.
	off, n int64
}

// waits says whether somebody waits for an answer to e.
func (e event) waits() bool {
	return e.fd >= 0 && e.mask&unix.FAN_PRE_ACCESS != 0
}

// parse decodes what one read gave: b up to the first event of length 0. There
// is more than one event only if the kernel leaves out the range.
func parse(b []byte) ([]event, error) {
	var events []event
	for len(b) >= metadataLen {
		size := int64(binary.NativeEndian.Uint32(b))
		if size == 0 {
			break
		}
		if size < metadataLen || size > int64(len(b)) {
			return nil, fmt.Errorf("event of %d bytes in %d: %w", size, len(b), ErrCorrupt)
		}
		e, err := parseOne(b[:size])
		if err != nil {
			return nil, err
		}
		events = append(events, e)
		b = b[size:]
	}
	return events, nil
}

func parseOne(b []byte) (event, error) {
	if v := b[atVersion]; v != eventVersion {
		return event{}, fmt.Errorf("event of version %d, want %d: %w", v, eventVersion, ErrCorrupt)
	}
	head := int(binary.NativeEndian.Uint16(b[atMetadataLen:]))
	if head < metadataLen || head > len(b) {
		return event{}, fmt.Errorf("event with %d bytes of metadata in %d: %w", head, len(b), ErrCorrupt)
	}
	e := event{
		mask: binary.NativeEndian.Uint64(b[atMask:]),
		fd:   int32(binary.NativeEndian.Uint32(b[atFD:])), //nolint:gosec // the kernel's field is signed
		n:    -1,
	}
	for b = b[head:]; len(b) >= recordHeader; {
		size := int(binary.NativeEndian.Uint16(b[2:]))
		if size < recordHeader || size > len(b) {
			return event{}, fmt.Errorf("record of %d bytes in %d: %w", size, len(b), ErrCorrupt)
		}
		if b[0] == unix.FAN_EVENT_INFO_TYPE_RANGE && size >= rangeRecordLen {
			e.setRange(binary.NativeEndian.Uint64(b[atRangeOffset:]), binary.NativeEndian.Uint64(b[atRangeCount:]))
		}
		b = b[size:]
	}
	return e, nil
}

// setRange leaves the range unknown if it cannot be one of a file.
func (e *event) setRange(off, n uint64) {
	const most = 1<<63 - 1
	if off > most || n > most-off {
		return
	}
	e.off, e.n = int64(off), int64(n) //nolint:gosec // checked above
}
