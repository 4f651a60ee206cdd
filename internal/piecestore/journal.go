package piecestore

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// The journal of a task, all integers little-endian:
//
//	header   magic [8]  version u32  meta length u32  meta JSON  crc32c u32
//	record   type u8    index u32    payload [32]     crc32c u32
//
// The header's CRC covers everything before it. A record's CRC covers the
// header's CRC and the record, so that a record is good only in its own
// journal. Records are replayed in order up to the first that is cut short or
// has a wrong CRC or an unknown type.
const (
	journalMagic   = "dfpieces"
	journalVersion = 1
	fixedHeader    = 16
	recordSize     = 1 + 4 + 32 + 4
	// maxMeta bounds what a damaged length field can make the decoder read. The
	// largest variable table takes about 7 MiB.
	maxMeta = 16 << 20
	// maxSource bounds the source kept for people to read.
	maxSource = 4096
)

// recordType says what a record changes.
type recordType uint8

const (
	// recHeld: piece index is held, payload its digest.
	recHeld recordType = 1 + iota
	// recDropped: piece index is no longer held, and the task not complete.
	recDropped
	// recComplete: the whole content was verified.
	recComplete
	// recPinned: pinned until payload[0:8], nanoseconds since 1970; 0 unpins.
	recPinned
	// recReset: no piece is held any more.
	recReset
	// recUnproven: as recHeld, but nobody vouched for the digest.
	recUnproven
)

// errCorrupt is returned for a journal without a readable header.
var errCorrupt = errors.New("journal is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// meta is what is fixed when a task is created.
type meta struct {
	ID      task.ID
	Table   task.Table
	Source  string
	Created time.Time
}

// metaJSON is the stored form of meta. Ends holds the lengths of the pieces of
// a variable table as uvarints in base64: a JSON array of a million offsets
// takes ten times as long to read.
type metaJSON struct {
	ID        string    `json:"id"`
	Length    int64     `json:"length"`
	PieceSize int64     `json:"piece_size,omitempty"`
	Ends      *string   `json:"ends,omitempty"`
	Source    string    `json:"source,omitempty"`
	Created   time.Time `json:"created"`
}

// record is one change of a task's state.
type record struct {
	kind    recordType
	index   uint32
	payload task.Digest
}

// replay is the state that a journal describes.
type replay struct {
	meta     meta
	crc      uint32
	held     task.Set
	unproven task.Set      // of held
	digests  []task.Digest // by piece; nil unless asked for
	complete bool
	pinned   time.Time // zero: not pinned
	size     int64     // bytes up to the end of the last good record
	records  int
	torn     bool // something unreadable follows size
}

// encodeHeader returns the journal's header and its CRC.
func encodeHeader(m meta) ([]byte, uint32, error) {
	j := metaJSON{ID: string(m.ID), Length: m.Table.Length, PieceSize: m.Table.PieceSize, Source: m.Source, Created: m.Created}
	if m.Table.Ends != nil {
		ends := encodeEnds(m.Table.Ends)
		j.Ends = &ends
	}
	body, err := json.Marshal(j)
	if err != nil {
		return nil, 0, fmt.Errorf("encode task description: %w", err)
	}
	if len(body) > maxMeta {
		return nil, 0, fmt.Errorf("encode task description: %d bytes, at most %d", len(body), maxMeta)
	}
	b := make([]byte, 0, fixedHeader+len(body)+4)
	b = append(b, journalMagic...)
	b = binary.LittleEndian.AppendUint32(b, journalVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body))) //nolint:gosec // bounded by maxMeta
	b = append(b, body...)
	crc := crc32.Checksum(b, castagnoli)
	return binary.LittleEndian.AppendUint32(b, crc), crc, nil
}

// appendRecord appends the stored form of r to b.
func appendRecord(b []byte, headerCRC uint32, r record) []byte {
	start := len(b)
	b = append(b, byte(r.kind))
	b = binary.LittleEndian.AppendUint32(b, r.index)
	b = append(b, r.payload[:]...)
	return binary.LittleEndian.AppendUint32(b, recordCRC(headerCRC, b[start:]))
}

func recordCRC(headerCRC uint32, body []byte) uint32 {
	var seed [4]byte
	binary.LittleEndian.PutUint32(seed[:], headerCRC)
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, body)
}

func pinRecord(until time.Time) record {
	r := record{kind: recPinned}
	if !until.IsZero() {
		binary.LittleEndian.PutUint64(r.payload[:], uint64(until.UnixNano()))
	}
	return r
}

// decodeJournal replays a journal. It fails with errCorrupt when the header
// cannot be read, and with the reader's error when that fails; a bad record
// ends the replay and is no error. Digests are kept only on request: they are
// by far the most of a task's state.
func decodeJournal(r *bufio.Reader, digests bool) (replay, error) {
	p, err := decodeHeader(r)
	if err != nil {
		return replay{}, err
	}
	n := p.meta.Table.Count()
	p.held, p.unproven = task.NewSet(n), task.NewSet(n)
	if digests {
		p.digests = make([]task.Digest, n)
	}
	var b [recordSize]byte
	for {
		m, err := io.ReadFull(r, b[:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			p.torn = m > 0
			return p, nil
		}
		if err != nil {
			return replay{}, fmt.Errorf("read journal: %w", err)
		}
		if !p.apply(b[:]) {
			p.torn = true
			return p, nil
		}
		p.size += recordSize
		p.records++
	}
}

func decodeHeader(r *bufio.Reader) (replay, error) {
	var fixed [fixedHeader]byte
	if err := readHeader(r, fixed[:]); err != nil {
		return replay{}, err
	}
	if string(fixed[:8]) != journalMagic {
		return replay{}, fmt.Errorf("%w: no journal header", errCorrupt)
	}
	if v := binary.LittleEndian.Uint32(fixed[8:]); v != journalVersion {
		return replay{}, fmt.Errorf("%w: version %d, want %d", errCorrupt, v, journalVersion)
	}
	size := binary.LittleEndian.Uint32(fixed[12:])
	if size > maxMeta {
		return replay{}, fmt.Errorf("%w: description of %d bytes, at most %d", errCorrupt, size, maxMeta)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(size)+4))
	if err != nil {
		return replay{}, fmt.Errorf("read journal: %w", err)
	}
	if len(body) != int(size)+4 {
		return replay{}, fmt.Errorf("%w: header is cut short", errCorrupt)
	}
	stored := binary.LittleEndian.Uint32(body[size:])
	crc := crc32.Update(crc32.Checksum(fixed[:], castagnoli), castagnoli, body[:size])
	if crc != stored {
		return replay{}, fmt.Errorf("%w: header checksum is wrong", errCorrupt)
	}
	m, err := decodeMeta(body[:size])
	if err != nil {
		return replay{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return replay{meta: m, crc: crc, size: fixedHeader + int64(size) + 4}, nil
}

// readHeader fills b, with errCorrupt when the journal ends before.
func readHeader(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: header is cut short", errCorrupt)
	}
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	return nil
}

func decodeMeta(b []byte) (meta, error) {
	var j metaJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return meta{}, fmt.Errorf("decode task description: %w", err)
	}
	id, err := task.ParseID(j.ID)
	if err != nil {
		return meta{}, err
	}
	m := meta{ID: id, Table: task.Table{Length: j.Length, PieceSize: j.PieceSize}, Source: j.Source, Created: j.Created}
	if j.Ends != nil {
		if m.Table.Ends, err = decodeEnds(*j.Ends); err != nil {
			return meta{}, err
		}
	}
	return m, m.Table.Validate()
}

func encodeEnds(ends []int64) string {
	b := make([]byte, 0, 4*len(ends))
	last := int64(0)
	for _, end := range ends {
		b = binary.AppendUvarint(b, uint64(end-last)) //nolint:gosec // ascending in a valid table
		last = end
	}
	return base64.StdEncoding.EncodeToString(b)
}

func decodeEnds(s string) ([]int64, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("decode piece table: %w", err)
	}
	ends := make([]int64, 0, min(len(b), task.MaxPieces))
	last := int64(0)
	for len(b) > 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v == 0 || v > task.MaxPieceSize || len(ends) == task.MaxPieces {
			return nil, fmt.Errorf("decode piece table: piece %d is invalid", len(ends))
		}
		last += int64(v)
		ends, b = append(ends, last), b[n:]
	}
	return ends, nil
}

// apply replays one record and reports whether it is good.
func (p *replay) apply(b []byte) bool {
	body, sum := b[:recordSize-4], binary.LittleEndian.Uint32(b[recordSize-4:])
	if recordCRC(p.crc, body) != sum {
		return false
	}
	i := binary.LittleEndian.Uint32(body[1:])
	payload := body[5:]
	pieces := p.meta.Table.Count()
	switch recordType(body[0]) {
	case recHeld, recUnproven:
		if int64(i) >= int64(pieces) {
			return false
		}
		p.held.Add(int(i))
		p.unproven.Remove(int(i))
		if recordType(body[0]) == recUnproven {
			p.unproven.Add(int(i))
		}
		if p.digests != nil {
			copy(p.digests[i][:], payload)
		}
	case recDropped:
		if int64(i) >= int64(pieces) {
			return false
		}
		p.held.Remove(int(i))
		p.unproven.Remove(int(i))
		p.complete = false
	case recComplete:
		if p.complete = p.held.Len() == pieces; p.complete {
			clear(p.unproven)
		}
	case recPinned:
		p.pinned = time.Time{}
		if ns := int64(binary.LittleEndian.Uint64(payload)); ns != 0 { //nolint:gosec // bits kept as they are
			p.pinned = time.Unix(0, ns)
		}
	case recReset:
		clear(p.held)
		clear(p.unproven)
		p.complete = false
	default:
		return false
	}
	return true
}
