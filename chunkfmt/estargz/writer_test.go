package estargz_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// style is a way in which layers with tables of contents are written.
type style struct {
	name string
	zstd bool
	// table is written at the end by which name.
	footer int
	chunk  int
	// minChunk > 0 puts several files into one member.
	minChunk int
	// ends has zstd:chunked write where files end, and begin a member there.
	ends bool
	// oldMagic is that of early zstd:chunked.
	oldMagic bool
	// split begins a member before each tar header, which no entry tells.
	split bool
}

var styles = []style{
	{name: "eStargz", footer: 51, chunk: 64 << 10},
	{name: "eStargz of one chunk", footer: 51, chunk: 16 << 20},
	{name: "eStargz in parts", footer: 51, chunk: 64 << 10, split: true},
	{name: "eStargz, small members together", footer: 51, chunk: 64 << 10, minChunk: 50_000},
	{name: "stargz", footer: 47, chunk: 64 << 10},
	{name: "zstd:chunked", zstd: true, footer: 64, chunk: 64 << 10, ends: true},
	{name: "zstd:chunked of stargz-snapshotter", zstd: true, footer: 40, chunk: 64 << 10, oldMagic: true},
	{name: "zstd:chunked, short footer", zstd: true, footer: 40, chunk: 64 << 10, ends: true},
}

// tarFile is what goes into a layer. Where cut is set, the content is cut
// there, and what is zeros is said to be.
type tarFile struct {
	tar.Header
	content []byte
	cut     []int
}

var when = time.Unix(1_700_000_000, 0).UTC()

func random(seed int64, n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(p)
	return p
}

// files is a layer with one of everything.
func files() []tarFile {
	hdr := func(name string, typ byte, mode int64) tar.Header {
		return tar.Header{Name: name, Typeflag: typ, Mode: mode, ModTime: when, Uid: 1, Gid: 70_000}
	}
	with := func(h tar.Header, change func(*tar.Header)) tar.Header { change(&h); return h }
	sparse := append(append(random(7, 10_000), make([]byte, 300<<10)...), random(8, 5_000)...)
	return []tarFile{
		{Header: hdr("./", tar.TypeDir, 0o755)},
		{Header: hdr("etc/", tar.TypeDir, 0o750)},
		{Header: hdr("etc/passwd", tar.TypeReg, 0o644), content: []byte("root:x:0:0\n")},
		{Header: hdr("etc/empty", tar.TypeReg, 0o600)},
		{Header: hdr("etc/link", tar.TypeLink, 0o644), content: nil},
		{Header: hdr(".no.prefetch.landmark", tar.TypeReg, 0o644), content: []byte{0xf}},
		{Header: hdr("usr/lib/big", tar.TypeReg, 0o4755), content: random(1, 300_001)},
		{Header: hdr("usr/lib/text", tar.TypeReg, 0o644), content: []byte(strings.Repeat("some text. ", 20_000))},
		{Header: with(hdr("usr/bin/sh", tar.TypeSymlink, 0o777), func(h *tar.Header) { h.Linkname = "../lib/big" })},
		{Header: with(hdr("dev/null", tar.TypeChar, 0o666), func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 })},
		{Header: with(hdr("dev/sda", tar.TypeBlock, 0o660), func(h *tar.Header) { h.Devmajor, h.Devminor = 8, 16 })},
		{Header: hdr("run/pipe", tar.TypeFifo, 0o600)},
		{Header: with(hdr("usr/bin/ping", tar.TypeReg, 0o755), func(h *tar.Header) {
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00" + strings.Repeat("\x00", 12),
				"SCHILY.xattr.user.empty":          "",
			}
		}), content: random(2, 4096)},
		{Header: hdr("var/sparse", tar.TypeReg, 0o644), content: sparse, cut: []int{10_000, 300<<10 + 10_000}},
		{Header: hdr("var/aligned", tar.TypeReg, 0o644), content: append(random(9, 8192), make([]byte, 16384)...), cut: []int{8192}},
		{Header: hdr("var/some zeros", tar.TypeReg, 0o644), content: append(make([]byte, 100), random(10, 100)...), cut: []int{100}},
		{Header: hdr("opt/.wh.gone", tar.TypeReg, 0)},
		{Header: hdr("opt/new/.wh..wh..opq", tar.TypeReg, 0)},
		{Header: hdr(".wh..wh.plnk", tar.TypeReg, 0)},
		{Header: hdr("opt/new/last", tar.TypeReg, 0o644), content: []byte("last")},
		{Header: hdr("opt/new/dir/", tar.TypeDir, 0o1777)},
	}
}

// layer is a written layer.
type layer struct {
	blob        []byte
	table       []byte
	annotations map[string]string
}

func (l *layer) options() estargz.Options {
	return estargz.Options{Digest: chunkfmt.Sum(l.blob), Annotations: l.annotations}
}

// layerWriter writes a layer and its table.
type layerWriter struct {
	t      testing.TB
	style  style
	out    bytes.Buffer
	member bytes.Buffer
	table  []map[string]any
}

func write(t testing.TB, s style, files []tarFile) layer {
	t.Helper()
	w := &layerWriter{t: t, style: s}
	for _, f := range files {
		w.add(f)
	}
	if s.zstd {
		return w.closeZstd()
	}
	return w.closeGzip()
}

var typeNames = map[byte]string{
	tar.TypeDir: "dir", tar.TypeReg: "reg", tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}

func (w *layerWriter) add(f tarFile) {
	if f.Typeflag == tar.TypeLink && f.Linkname == "" {
		f.Linkname = "etc/passwd"
	}
	f.Size = int64(len(f.content))
	if w.style.split {
		w.flush()
	}
	w.header(&f.Header)
	e := map[string]any{
		"name": f.Name, "type": typeNames[f.Typeflag], "mode": f.Mode, "uid": f.Uid, "gid": f.Gid,
		"modtime": f.ModTime.Format(time.RFC3339Nano), "linkName": f.Linkname,
		"devMajor": f.Devmajor, "devMinor": f.Devminor, "NumLink": 0,
	}
	xattrs := map[string]string{}
	for k, v := range f.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			xattrs[name] = base64.StdEncoding.EncodeToString([]byte(v))
		}
	}
	if len(xattrs) > 0 {
		e["xattrs"] = xattrs
	}
	if len(f.content) > 0 {
		e["size"] = len(f.content)
		e["digest"] = chunkfmt.Sum(f.content).String()
	}
	w.table = append(w.table, e)
	w.content(e, f)
	w.member.Write(make([]byte, -len(f.content)&511))
}

func (w *layerWriter) content(e map[string]any, f tarFile) {
	if len(f.content) == 0 {
		return
	}
	pieces := w.pieces(f)
	done := 0
	for i, p := range pieces {
		if i > 0 {
			e = map[string]any{"name": f.Name, "type": "chunk"}
			w.table = append(w.table, e)
		}
		if w.member.Len() >= w.style.minChunk {
			w.flush()
		}
		e["offset"], e["innerOffset"], e["chunkOffset"] = w.out.Len(), w.member.Len(), done
		if i+1 < len(pieces) || w.style.ends && len(pieces) > 1 {
			e["chunkSize"] = len(p)
		}
		if !w.style.ends || len(pieces) > 1 {
			e["chunkDigest"] = chunkfmt.Sum(p).String()
		}
		if w.style.ends && len(pieces) > 1 && len(bytes.Trim(p, "\x00")) == 0 {
			e["chunkType"] = "zeros"
		}
		w.member.Write(p)
		done += len(p)
	}
	if w.style.ends {
		w.flush()
		w.table[len(w.table)-len(pieces)]["endOffset"] = w.out.Len()
	}
}

func (w *layerWriter) pieces(f tarFile) [][]byte {
	var pieces [][]byte
	rest, done := f.content, 0
	cut := f.cut
	if !w.style.ends {
		cut = nil // only zstd:chunked cuts where it likes
	}
	for len(rest) > 0 {
		n := min(len(rest), w.style.chunk)
		if len(cut) > 0 {
			n = cut[0] - done
			cut = cut[1:]
		} else if w.style.ends && len(f.cut) > 0 {
			n = len(rest)
		}
		pieces = append(pieces, rest[:n])
		rest, done = rest[n:], done+n
	}
	return pieces
}

func (w *layerWriter) header(h *tar.Header) {
	if err := tar.NewWriter(&w.member).WriteHeader(h); err != nil {
		w.t.Fatal(err)
	}
}

// flush ends a member.
func (w *layerWriter) flush() {
	if w.member.Len() == 0 {
		return
	}
	w.out.Write(w.compress(w.member.Bytes()))
	w.member.Reset()
}

func (w *layerWriter) compress(plain []byte) []byte {
	var b bytes.Buffer
	if w.style.zstd {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			w.t.Fatal(err)
		}
		return z.EncodeAll(plain, nil)
	}
	z := gzip.NewWriter(&b)
	if _, err := z.Write(plain); err != nil {
		w.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes()
}

func (w *layerWriter) toc() []byte {
	p, err := json.MarshalIndent(map[string]any{"entries": w.table, "tarSplitDigest": "sha256:1", "version": 1}, "", "\t")
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *layerWriter) closeGzip() layer {
	w.flush()
	toc, offset := w.toc(), w.out.Len()
	w.header(&tar.Header{Name: "stargz.index.json", Typeflag: tar.TypeReg, Mode: 0o444, Size: int64(len(toc))})
	w.member.Write(toc)
	w.member.Write(make([]byte, -len(toc)&511+1024))
	w.flush()
	w.out.Write(gzipFooter(w.style.footer, fmt.Sprintf("%016xSTARGZ", offset)))
	return layer{w.out.Bytes(), toc, map[string]string{estargz.TOCDigestAnnotation: chunkfmt.Sum(toc).String()}}
}

// gzipFooter is an empty member of stored data with an extra field.
func gzipFooter(size int, text string) []byte {
	f := []byte{0x1f, 0x8b, 0x08, 0x04, 0, 0, 0, 0, 0, 0xff, byte(size - 25), 0}
	if size == 51 {
		f = append(f, 'S', 'G', byte(len(text)), 0)
	}
	f = append(f, text...)
	return append(f, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
}

func skippable(p []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(len(p))), p...)
}

func (w *layerWriter) closeZstd() layer {
	w.member.Write(make([]byte, 1024))
	w.flush()
	toc := w.toc()
	stored := w.compress(toc)
	offset := w.out.Len() + 8
	w.out.Write(skippable(stored))
	annotations := map[string]string{
		estargz.ChecksumAnnotation: chunkfmt.Sum(stored).String(),
		estargz.PositionAnnotation: fmt.Sprintf("%d:%d:%d:1", offset, len(stored), len(toc)),
	}
	numbers := []int{offset, len(stored), len(toc), 1}
	if w.style.footer == 64 {
		w.out.Write(skippable([]byte("tar-split")))
		numbers = append(numbers, 1, 2, 3)
	}
	var footer []byte
	for _, n := range numbers {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(n))
	}
	magic := "GNUlInUx"
	if w.style.oldMagic {
		magic = "GnUlInUx"
	}
	w.out.Write(skippable(append(footer, magic...)))
	return layer{w.out.Bytes(), toc, annotations}
}
