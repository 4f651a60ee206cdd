package estargz

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// entry is an element of the table's "entries", of either format.
type entry struct {
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Size     int64             `json:"size"`
	ModTime  string            `json:"modtime"`
	LinkName string            `json:"linkName"`
	Mode     int64             `json:"mode"`
	UID      int64             `json:"uid"`
	GID      int64             `json:"gid"`
	DevMajor int64             `json:"devMajor"`
	DevMinor int64             `json:"devMinor"`
	Xattrs   map[string][]byte `json:"xattrs"`
	Digest   string            `json:"digest"`

	// Offset is where a member with content begins in the layer.
	Offset int64 `json:"offset"`
	// EndOffset is where the last member of a file ends; only zstd:chunked
	// has it.
	EndOffset int64 `json:"endOffset"`
	// InnerOffset is where the content begins in what is decoded from Offset
	// on; only eStargz has it.
	InnerOffset int64 `json:"innerOffset"`
	// ChunkOffset is where in the file the content belongs.
	ChunkOffset int64 `json:"chunkOffset"`
	// ChunkSize is 0 for the rest of the file.
	ChunkSize   int64  `json:"chunkSize"`
	ChunkDigest string `json:"chunkDigest"`
	// ChunkType is "zeros" or empty; only zstd:chunked has it.
	ChunkType string `json:"chunkType"`
}

// mtime returns the time in the two fields of an inode. An absent and the
// zero time stand for the epoch.
func (e *entry) mtime() (int64, uint32, error) {
	if e.ModTime == "" {
		return 0, 0, nil
	}
	t, err := time.Parse(time.RFC3339, e.ModTime)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: modtime: %w", chunkfmt.ErrInvalid, err)
	}
	// What containerd does to times that it cannot set.
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, 0, nil
	}
	return t.Unix(), uint32(t.Nanosecond()), nil //nolint:gosec // G115: below 1e9
}

// scan calls add for each entry of a table.
func scan(raw []byte, limit int, add func(*entry) error) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := expect(d, json.Delim('{')); err != nil {
		return err
	}
	version, entries := 0, false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return malformed(d, err)
		}
		switch key {
		case "version":
			err = d.Decode(&version)
		case "entries":
			if entries {
				return fmt.Errorf("%w: two lists of entries", chunkfmt.ErrInvalid)
			}
			entries = true
			err = scanEntries(d, limit, add)
		default:
			var ignored json.RawMessage
			err = d.Decode(&ignored)
		}
		if err != nil {
			return malformed(d, err)
		}
	}
	if err := expect(d, json.Delim('}')); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows the table", chunkfmt.ErrInvalid)
	}
	if version != 1 {
		return fmt.Errorf("%w: version %d", ErrUnsupported, version)
	}
	return nil
}

func scanEntries(d *json.Decoder, limit int, add func(*entry) error) error {
	if err := expect(d, json.Delim('[')); err != nil {
		return err
	}
	for n := 0; d.More(); n++ {
		if n == limit {
			return fmt.Errorf("%w: more than %d entries", ErrUnsupported, limit)
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if err := add(&e); err != nil {
			return fmt.Errorf("entry %d, %.200q: %w", n, e.Name, err)
		}
	}
	return expect(d, json.Delim(']'))
}

func expect(d *json.Decoder, want json.Delim) error {
	switch got, err := d.Token(); {
	case err != nil:
		return malformed(d, err)
	case got != want:
		return fmt.Errorf("%w: %v at byte %d, want %v", chunkfmt.ErrInvalid, got, d.InputOffset(), want)
	}
	return nil
}

// malformed marks an error of the JSON decoder as one about the table.
func malformed(d *json.Decoder, err error) error {
	if errors.Is(err, chunkfmt.ErrInvalid) || errors.Is(err, ErrUnsupported) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: at byte %d: %w", chunkfmt.ErrInvalid, d.InputOffset(), err)
}
