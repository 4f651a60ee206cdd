package runtimetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// member is one member of a layer's tar: a header with data, or blocks made by
// hand where archive/tar refuses to write what others write.
type member struct {
	header tar.Header
	data   string
	raw    []byte
}

type change func(*member)

func file(name, data string, with ...change) member { return newMember(tar.TypeReg, name, data, with) }

func dir(name string, with ...change) member { return newMember(tar.TypeDir, name+"/", "", with) }

func symlink(name, target string, with ...change) member {
	return newMember(tar.TypeSymlink, name, "", append(with, to(target)))
}

// hard is a hard link. Its header is that of its target, as archivers write it.
func hard(name, target string, with ...change) member {
	return newMember(tar.TypeLink, name, "", append(with, to(target)))
}

func special(kind byte, name string, major, minor int64, with ...change) member {
	m := newMember(kind, name, "", with)
	m.header.Devmajor, m.header.Devminor = major, minor
	return m
}

// whiteout removes a name of the layers below.
func whiteout(name string) member {
	d, base := path.Split(name)
	return file(d+".wh."+base, "")
}

// opaque removes what layers below have in a directory.
func opaque(name string) member { return file(path.Join(name, ".wh..wh..opq"), "") }

func raw(blocks []byte) member { return member{raw: blocks} }

func newMember(kind byte, name, data string, with []change) member {
	m := member{header: tar.Header{Typeflag: kind, Name: name, Format: tar.FormatPAX, Mode: -1, Uid: -1, Gid: -1}, data: data}
	for _, c := range with {
		c(&m)
	}
	return m
}

func to(target string) change      { return func(m *member) { m.header.Linkname = target } }
func mode(bits int64) change       { return func(m *member) { m.header.Mode = bits } }
func owner(uid, gid int) change    { return func(m *member) { m.header.Uid, m.header.Gid = uid, gid } }
func at(sec, nsec int64) change    { return func(m *member) { m.header.ModTime = time.Unix(sec, nsec) } }
func form(f tar.Format) change     { return func(m *member) { m.header.Format = f } }
func named(name string) change     { return func(m *member) { m.header.Name = name } }
func pax(key, value string) change { return paxed(map[string]string{key: value}) }
func xattr(key, value string) change {
	return pax("SCHILY.xattr."+key, value)
}

func paxed(records map[string]string) change {
	return func(m *member) {
		if m.header.PAXRecords == nil {
			m.header.PAXRecords = map[string]string{}
		}
		for k, v := range records {
			m.header.PAXRecords[k] = v
		}
	}
}

// complete gives every attribute that a case has not set a value of its own,
// so that no two members can be mistaken for each other. seen has the members
// so far by clean name.
func (m *member) complete(layer, place int, seen map[string]tar.Header) {
	h := &m.header
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if like, ok := seen[strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")]; ok && h.Typeflag == tar.TypeLink {
		if h.ModTime.IsZero() {
			h.ModTime = like.ModTime
		}
		h.Mode, h.Uid, h.Gid = or(h.Mode, like.Mode), or(h.Uid, like.Uid), or(h.Gid, like.Gid)
		if h.PAXRecords == nil {
			h.PAXRecords = like.PAXRecords
		}
	}
	usual := int64(0o640 | place&7)
	if h.Typeflag == tar.TypeDir {
		usual = 0o750 | int64(place&7)
	}
	h.Mode, h.Uid, h.Gid = or(h.Mode, usual), or(h.Uid, 1000*layer+place), or(h.Gid, 2000+1000*layer+place)
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(int64(1_600_000_000+1000*layer+place), int64(123_456_789+place))
	}
	if h.Format == tar.FormatUSTAR {
		h.ModTime = h.ModTime.Truncate(time.Second)
	}
	h.Size = int64(len(m.data))
	seen[name] = *h
}

// or returns v unless it is the -1 of what was not set.
func or[T int | int64](v, otherwise T) T {
	if v == -1 {
		return otherwise
	}
	return v
}

// tarOf writes the tars of layers, with the two zero blocks at their ends.
func tarsOf(t *testing.T, layers [][]member) [][]byte {
	t.Helper()
	seen := map[string]tar.Header{}
	tars := make([][]byte, len(layers))
	for i, members := range layers {
		var buf bytes.Buffer
		for j := range members {
			m := members[j]
			if m.raw != nil {
				buf.Write(m.raw)
				continue
			}
			m.complete(i+1, j, seen)
			tw := tar.NewWriter(&buf)
			if err := tw.WriteHeader(&m.header); err != nil {
				t.Fatalf("layer %d, %s: %v", i+1, m.header.Name, err)
			}
			if _, err := tw.Write([]byte(m.data)); err != nil {
				t.Fatal(err)
			}
			if err := tw.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		tars[i] = append(buf.Bytes(), make([]byte, 1024)...)
	}
	return tars
}

// packing is a way to compress a layer.
type packing string

// The packings that containerd unpacks.
const (
	asTar       packing = "tar"
	asGzip      packing = "tar+gzip"
	asMembers   packing = "tar+gzip of many members"
	asZstd      packing = "tar+zstd"
	asFrames    packing = "tar+zstd of many frames"
	asSkippable packing = "tar+zstd with skippable frames"
)

func (p packing) mediaType() string {
	kind, _, _ := strings.Cut(string(p), " ")
	return "application/vnd.oci.image.layer.v1." + kind
}

// pack compresses a tar.
func (p packing) pack(t *testing.T, plain []byte) []byte {
	t.Helper()
	part := len(plain)
	if p == asMembers || p == asFrames || p == asSkippable {
		part = 1000 // neither a block of the tar nor a chunk
		if len(plain) > 1<<20 {
			part = 100_000
		}
	}
	var out bytes.Buffer
	for first := true; first || len(plain) > 0; first = false {
		n := min(part, len(plain))
		switch p {
		case asTar:
			out.Write(plain[:n])
		case asGzip, asMembers:
			zw, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = zw.Write(plain[:n]); err == nil {
				err = zw.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		default:
			zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			out.Write(zw.EncodeAll(plain[:n], nil))
			if p == asSkippable {
				out.Write(binary.LittleEndian.AppendUint32([]byte{0x53, 0x2a, 0x4d, 0x18}, 5))
				out.WriteString("skip!")
			}
		}
		plain = plain[n:]
	}
	return out.Bytes()
}

// ustar makes a header by hand.
func ustar(kind byte, name, target string, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, 11, 12, size, 1_500_000_000))
	b[156] = kind
	copy(b[157:], target)
	copy(b[257:], "ustar\x0000")
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// padded fills the last block of a member's data.
func padded(data string) []byte { return append([]byte(data), make([]byte, -len(data)&511)...) }
