package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/frames"
)

// The annotations of layer descriptors that Open knows.
const (
	// TOCDigestAnnotation has the digest of the JSON of an eStargz table.
	TOCDigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"
	// ChecksumAnnotation has the digest of a zstd:chunked table as it is
	// stored, compressed.
	ChecksumAnnotation = "io.github.containers.zstd-chunked.manifest-checksum"
	// PositionAnnotation has the place of a zstd:chunked table:
	// offset:length:plain length:type.
	PositionAnnotation = "io.github.containers.zstd-chunked.manifest-position"

	// The names that stargz-snapshotter gave the same things at first.
	oldChecksumAnnotation = "io.containers.zstd-chunked.manifest-checksum"
	oldPositionAnnotation = "io.containers.zstd-chunked.manifest-position"
)

var (
	// ErrNoTable is wrapped by the error for a layer without a table of
	// contents.
	ErrNoTable = errors.New("no table of contents")
	// ErrUnverified is wrapped by the error for a table that no digest was
	// given for.
	ErrUnverified = errors.New("nothing vouches for the table of contents")
	// ErrUnsupported is wrapped by the error for a layer that may be right,
	// but cannot be indexed in place: it must be read and packed anew.
	ErrUnsupported = errors.New("layer cannot be indexed in place")
)

// tableName is the file that an eStargz table is in the tar.
const tableName = "stargz.index.json"

// Options of Open.
type Options struct {
	// Digest of the layer blob, from the manifest.
	Digest chunkfmt.Digest
	// DiffID of the layer, from the image's configuration; zero if unknown.
	DiffID chunkfmt.Digest
	// TOCDigest is the expected digest of the table's JSON. Zero: only the
	// Annotations count.
	TOCDigest chunkfmt.Digest
	// Annotations of the layer's descriptor, from the manifest. All digests
	// that are here must match, too.
	Annotations map[string]string
	// AllowUnverified permits a table that no digest is given for.
	AllowUnverified bool
	// Limits of what is read.
	Limits Limits
}

// Limits bound the memory that Open needs. A field that is zero means its
// default.
type Limits struct {
	// Stored bounds the bytes of the table in the layer. Default 32 MiB.
	Stored int64
	// Plain bounds the bytes of the table's JSON. Default 128 MiB.
	Plain int64
	// Entries bounds the table's entries, chunks of files included. Default
	// 2,097,152.
	Entries int
}

func (l Limits) orDefault() Limits {
	if l.Stored == 0 {
		l.Stored = 32 << 20
	}
	if l.Plain == 0 {
		l.Plain = 128 << 20
	}
	if l.Entries == 0 {
		l.Entries = 2 << 20
	}
	return l
}

// Open makes the index of a layer of size bytes from its table of contents.
// It reads r two times, at the end and where the table is. It checks ctx before
// each and while it goes over the table.
func Open(ctx context.Context, r io.ReaderAt, size int64, o Options) (*chunkfmt.Index, error) {
	o.Limits = o.Limits.orDefault()
	if size <= 0 || size > chunkfmt.MaxFileSize {
		return nil, fmt.Errorf("layer %s: %w: size of %d bytes", o.Digest, ErrUnsupported, size)
	}
	at, err := locate(r, size, o.Annotations)
	if err != nil {
		return nil, fmt.Errorf("finding the table of contents of layer %s: %w", o.Digest, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	raw, err := at.read(r, o)
	if err != nil {
		return nil, fmt.Errorf("reading the table of contents of layer %s: %w", o.Digest, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	index, err := build(ctx, raw, at, size, o)
	if err != nil {
		return nil, fmt.Errorf("table of contents of layer %s: %w", o.Digest, err)
	}
	return index, nil
}

// place is where a table of contents is and what the layer is made of.
type place struct {
	codec chunkfmt.Codec
	// offset and length of the compressed table.
	offset, length int64
	// plain is the length of its JSON; 0 if unknown.
	plain int64
	// dataEnd is where the members with content end.
	dataEnd int64
}

// read returns the JSON of the table, after checking it.
func (at place) read(r io.ReaderAt, o Options) ([]byte, error) {
	if at.length > o.Limits.Stored || at.plain > o.Limits.Plain {
		return nil, fmt.Errorf("%w: the table has %d stored and %d plain bytes, at most %d and %d",
			ErrUnsupported, at.length, at.plain, o.Limits.Stored, o.Limits.Plain)
	}
	stored := make([]byte, at.length)
	if err := readAt(r, stored, at.offset); err != nil {
		return nil, err
	}
	v := verifier{o: o}
	if at.codec == chunkfmt.Zstd {
		v.check(stored, ChecksumAnnotation)
		v.check(stored, oldChecksumAnnotation)
		if v.err != nil {
			return nil, v.err
		}
	}
	raw, err := at.decode(stored, o.Limits.Plain)
	if err != nil {
		return nil, err
	}
	v.check(raw, TOCDigestAnnotation)
	v.checkDigest(raw, o.TOCDigest, "the one asked for")
	if v.err == nil && !v.done && !o.AllowUnverified {
		v.err = ErrUnverified
	}
	return raw, v.err
}

// decode returns the JSON in the stored bytes of a table.
func (at place) decode(stored []byte, limit int64) ([]byte, error) {
	format := frames.Zstd
	if at.codec == chunkfmt.Gzip {
		format = frames.Gzip
	}
	plain, err := frames.NewPlainReader(bytes.NewReader(stored), format)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", chunkfmt.ErrInvalid, err)
	}
	defer plain.Close()
	var in io.Reader = plain
	if at.codec == chunkfmt.Gzip {
		t := tar.NewReader(plain)
		h, err := t.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: no tar header: %w", chunkfmt.ErrInvalid, err)
		}
		if h.Name != tableName {
			return nil, fmt.Errorf("%w: it is named %.80q, not %s", chunkfmt.ErrInvalid, h.Name, tableName)
		}
		in, at.plain = t, h.Size
	}
	raw, err := io.ReadAll(io.LimitReader(in, limit+1))
	switch {
	case int64(len(raw)) > limit:
		return nil, fmt.Errorf("%w: the table has more than %d plain bytes", ErrUnsupported, limit)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", chunkfmt.ErrInvalid, err)
	case int64(len(raw)) != at.plain:
		return nil, fmt.Errorf("%w: it has %d plain bytes, not %d", chunkfmt.ErrInvalid, len(raw), at.plain)
	}
	return raw, nil
}

// verifier compares digests and keeps the first error.
type verifier struct {
	o    Options
	done bool
	err  error
}

func (v *verifier) check(p []byte, annotation string) {
	text, ok := v.o.Annotations[annotation]
	if !ok || v.err != nil {
		return
	}
	want, err := chunkfmt.ParseDigest(text)
	if err != nil {
		v.err = fmt.Errorf("annotation %s: %w", annotation, err)
		return
	}
	v.checkDigest(p, want, "annotation "+annotation)
}

func (v *verifier) checkDigest(p []byte, want chunkfmt.Digest, source string) {
	if v.err != nil || want.IsZero() {
		return
	}
	if got := chunkfmt.Sum(p); got != want {
		v.err = fmt.Errorf("%w: its digest is %s, %s is %s", chunkfmt.ErrInvalid, got, source, want)
	}
	v.done = true
}

// readAt fills p, and takes a source that ends earlier for a wrong size.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes at %d: %w", len(p), off, err)
}
