package erofs

import "io"

const sinkSize = 1 << 20

// sink buffers an image on its way out. Its first error sticks; what is
// written after it is lost.
type sink struct {
	w      io.Writer
	buf    []byte // zero beyond n
	n      int
	before int64 // bytes that went before buf
	err    error
}

func newSink(w io.Writer) *sink { return &sink{w: w, buf: make([]byte, sinkSize)} }

// pos is the length of the image so far.
func (s *sink) pos() int64 { return s.before + int64(s.n) }

func (s *sink) flush() error {
	s.send(s.buf[:s.n])
	clear(s.buf[:s.n])
	s.n = 0
	return s.err
}

func (s *sink) send(p []byte) {
	s.before += int64(len(p))
	if s.err != nil || len(p) == 0 {
		return
	}
	if n, err := s.w.Write(p); err != nil {
		s.err = err
	} else if n < len(p) {
		s.err = io.ErrShortWrite
	}
}

// take returns the next n bytes of the image, at most a block, to be filled
// before the next call. They are zero.
func (s *sink) take(n int) []byte {
	if n > len(s.buf)-s.n {
		_ = s.flush() // the error sticks
	}
	b := s.buf[s.n : s.n+n]
	s.n += n
	return b
}

func (s *sink) write(p []byte) {
	if len(p) > len(s.buf)/2 {
		_ = s.flush() // the error sticks
		s.send(p)
		return
	}
	for len(p) > 0 {
		n := min(len(p), blockSize)
		copy(s.take(n), p[:n])
		p = p[n:]
	}
}

// pad writes zeros up to a position.
func (s *sink) pad(to int64) {
	for s.pos() < to {
		s.take(int(min(to-s.pos(), blockSize)))
	}
}
