package frames

import "io"

// capture keeps the bytes that pass through it from start on.
type capture struct {
	r     io.Reader
	buf   []byte
	start int
	limit int
	// full is set when a read was refused because of limit.
	full bool
}

// Read reads no further when limit bytes are kept already.
func (c *capture) Read(p []byte) (int, error) {
	room := c.limit - (len(c.buf) - c.start)
	if room <= 0 {
		c.full = true
		return 0, ErrTooLarge
	}
	if len(p) > room {
		p = p[:room]
	}
	// Without this a stream of small frames would grow the buffer for ever,
	// and doing it for each of them would copy the same bytes over and over.
	if c.start > 0 && len(c.buf)+len(p) > cap(c.buf) {
		c.buf = c.buf[:copy(c.buf, c.buf[c.start:])]
		c.start = 0
	}
	n, err := c.r.Read(p)
	c.buf = append(c.buf, p[:n]...)
	return n, err
}

// upTo returns the kept bytes, without the last ahead ones.
func (c *capture) upTo(ahead int) []byte {
	return c.buf[c.start : len(c.buf)-ahead : len(c.buf)-ahead]
}
