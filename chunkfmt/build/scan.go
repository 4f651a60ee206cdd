package build

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/frames"
)

// readBuffer is how much of a layer is read at once.
const readBuffer = 256 << 10

// maxWarnings is how many warnings about a layer are kept.
const maxWarnings = 20

// piece is a part of a file's content on its way from scanner to packer.
type piece struct {
	node   *chunkfmt.Node
	digest chunkfmt.Digest
	// at is where the content lies in the file, offset where in the batch's
	// buffer or group.
	at     int64
	offset uint32
	length uint32
	// holes, when it is not 0, says that the piece stands for so many chunks
	// of zeros.
	holes uint32
	// rank is the place of the first access that wants the piece, from 1; 0
	// means none.
	rank uint32
	// large marks the first piece of a file that shall begin a group.
	large bool
	// fixed pieces are not looked for elsewhere, because they begin or end
	// within a block.
	fixed bool
}

// batch is what a scanner hands to the packer at a time.
type batch struct {
	slab   *slab
	pieces []piece
	// raw, when it is set, is the group that the pieces lie in: of an image's
	// layer (then the slab has its plain bytes) or of a layer in place.
	raw *rawGroup
}

// rawGroup is a group of the stream as it is, tar headers and all.
type rawGroup struct {
	plain int
	// stored is set in place only.
	stored *chunkfmt.Group
}

// scan is the state of one layer, from the scanner to the result.
type scan struct {
	b     *builder
	layer Layer
	at    int
	out   chan batch
	// mayPlace says that the layer may be indexed in place.
	mayPlace bool

	// Set by the scanner before it closes out.
	draft    *chunkfmt.Draft
	inPlace  bool
	diffID   chunkfmt.Digest
	stored   int64
	digest   chunkfmt.Digest
	plain    int64
	stats    Stats
	warnings []string
	dropped  int
}

// run reads the layer and closes out when all is well.
func (s *scan) run(ctx context.Context) error {
	err := s.read(ctx)
	if err != nil {
		return fmt.Errorf("layer %d (%s): %w", s.at, s.layer.Name, err)
	}
	close(s.out)
	return nil
}

func (s *scan) read(ctx context.Context) error {
	if s.mayPlace {
		ok, err := s.attempt(ctx, true)
		if ok || err != nil {
			return err
		}
	}
	_, err := s.attempt(ctx, false)
	return err
}

// attempt reads the layer once. It reports false when it was to be read in
// place and cannot be.
func (s *scan) attempt(ctx context.Context, inPlace bool) (bool, error) {
	src, err := openSource(ctx, s.layer, func(n int64) { s.b.progress(Event{Layer: s.at, Read: n, Size: s.layer.Size}) })
	if err != nil {
		return false, err
	}
	defer src.close()
	br := bufio.NewReaderSize(src, readBuffer)
	format, err := frames.Detect(br)
	if err != nil {
		return false, err
	}
	s.draft, s.stats, s.warnings, s.dropped = chunkfmt.NewDraft(), Stats{}, nil, 0
	rest := io.Reader(br)
	if inPlace {
		var many bool
		if rest, many, err = probe(br, format); err != nil {
			return false, err
		}
		if many {
			return s.readInPlace(ctx, src, rest, format)
		}
	}
	plain, err := frames.NewPlainReader(rest, format)
	if err != nil {
		return false, err
	}
	defer func() { _ = plain.Close() }() // has nothing to flush
	t := newTap(plain, s.b.o.MaxPlain)
	if format == frames.Tar {
		t.hash = nil // the source has it
	}
	w := newWalk(ctx, s, t)
	if err := w.all(); err != nil {
		return false, err
	}
	return true, s.done(src, rest, w.tap)
}

// done checks the digests at the end of a layer.
func (s *scan) done(src *source, rest io.Reader, t *tap) error {
	if err := src.finish(rest); err != nil {
		return err
	}
	s.plain, s.stored, s.digest = t.n, src.n, src.digest()
	s.diffID = s.digest
	if t.hash != nil {
		s.diffID = sum(t.hash)
	}
	if want := s.layer.DiffID; !want.IsZero() && s.diffID != want {
		return fmt.Errorf("%w: DiffID %s, expected %s", ErrMismatch, s.diffID, want)
	}
	if s.dropped > 0 {
		s.warnings = append(s.warnings, fmt.Sprintf("%d more warnings", s.dropped))
	}
	s.b.progress(Event{Layer: s.at, Read: src.n, Size: s.layer.Size, Done: true})
	return nil
}

func (s *scan) warn(format string, args ...any) {
	if len(s.warnings) >= maxWarnings {
		s.dropped++
		return
	}
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// contents takes the content of files out of the stream that a walk is at.
type contents interface {
	// file takes the content of a node that has one; linear says that the tar
	// has it as it is.
	file(n *chunkfmt.Node, r *ranks, linear bool) error
	// end is called after the last byte of the stream.
	end() error
}

// walk goes through the tar of a layer.
type walk struct {
	*scan
	ctx  context.Context //nolint:containedctx // lives as long as one scan
	tap  *tap
	tar  *tar.Reader
	to   contents
	size int64 // of all files so far
}

func newWalk(ctx context.Context, s *scan, t *tap) *walk {
	w := &walk{scan: s, ctx: ctx, tap: t, tar: tar.NewReader(t)}
	d := &dataContents{walk: w, zeros: s.b.zeros}
	w.to = d
	if s.b.o.Mode == AsImage {
		w.to = newImageContents(w, d)
	}
	return w
}

// all reads the tar and what follows it.
func (w *walk) all() error {
	for {
		h, err := w.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the tar at byte %d: %w", w.tap.n, noEOF(err))
		}
		if w.stats.Entries++; w.stats.Entries > w.b.o.MaxEntries {
			return fmt.Errorf("%w: its tar has more than %d entries", ErrLimit, w.b.o.MaxEntries)
		}
		if err := w.entry(h); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
	// What follows the end of the tar belongs to the DiffID too. The wrapper
	// keeps io.Discard from reading in small steps.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, w.tap, make([]byte, 64<<10)); err != nil {
		return fmt.Errorf("reading behind the tar: %w", err)
	}
	return w.to.end()
}

// noEOF keeps the end of the input inside an entry from looking like that of
// the tar.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (w *walk) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader || isRoot(h.Name) {
		return nil
	}
	if done, err := whiteout(w.draft, h.Name); done {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		dropped, err := link(w.draft, h)
		w.warnDropped(h, dropped)
		return err
	}
	n, dropped, err := newNode(h)
	if err != nil {
		return err
	}
	w.warnDropped(h, dropped)
	if err := w.draft.Put(h.Name, n); err != nil {
		return err
	}
	if n.Kind != chunkfmt.File || n.Size == 0 {
		return nil
	}
	return w.content(h, n)
}

func (w *walk) warnDropped(h *tar.Header, names []string) {
	for _, name := range names {
		w.warn("%.200q: dropped extended attribute %.80q, which Linux has not for it", h.Name, name)
	}
}

func (w *walk) content(h *tar.Header, n *chunkfmt.Node) error {
	if n.Size > w.b.o.MaxPlain-w.size {
		return fmt.Errorf("%w: its files have more than %d bytes", ErrLimit, w.b.o.MaxPlain)
	}
	w.size += n.Size
	w.stats.Content += n.Size
	if n.Size <= int64(w.b.o.InlineMax) {
		n.Inline = make([]byte, n.Size)
		w.stats.Inline += n.Size
		_, err := io.ReadFull(w.tar, n.Inline)
		return noEOF(err)
	}
	return noEOF(w.to.file(n, w.b.trace.of(h.Name), !isSparse(h)))
}

// isSparse reports an entry whose content in the tar is not that of the file.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for _, record := range []string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize"} {
		if _, ok := h.PAXRecords[record]; ok {
			return true
		}
	}
	return false
}

// send hands a batch to the packer.
func (s *scan) send(ctx context.Context, b batch) error {
	select {
	case s.out <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
