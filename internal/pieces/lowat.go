package pieces

import (
	"context"
	"io"
	"net"
	"net/http/httptrace"

	"golang.org/x/sys/unix"
)

// A link that is paced packet by packet wakes its reader for each packet, which
// costs more than all else that is done with the bytes. While much of a piece is
// to come, the reader therefore asks to be woken for lowWater bytes at a time.
const (
	lowWater = 64 << 10
	// lowWaterTail is what of a piece must remain beyond lowWater: more than the
	// HTTP client has in its buffer, or the kernel would wait for bytes that are
	// in the process already.
	lowWaterTail = 32 << 10
)

// lowWaterConn is a TCP connection whose low-water mark (SO_RCVLOWAT) can be set.
type lowWaterConn struct {
	*net.TCPConn
	mark int // set last; used by one reader at a time
}

// dialLowWater makes dial return connections with a settable mark. Others than
// TCP stay as they are.
func dialLowWater(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok && err == nil {
			return &lowWaterConn{TCPConn: tcp, mark: 1}, nil
		}
		return c, err
	}
}

// set lets reads wait for n bytes. A kernel that refuses costs speed only.
func (c *lowWaterConn) set(n int) {
	if c.mark == n {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	if raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) }) == nil && err == nil {
		c.mark = n
	}
}

// withConn returns a context with which an HTTP request tells its connection.
func withConn(ctx context.Context, conn **lowWaterConn) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		*conn, _ = i.Conn.(*lowWaterConn) // nil for other connections
	}})
}

// pieceBody reads a piece of which left bytes are to come.
type pieceBody struct {
	io.ReadCloser
	conn *lowWaterConn
	left int64
}

// Read reads with the mark that suits what is left. At the end the mark is 1
// again: the connection's next answer may be short.
func (b *pieceBody) Read(p []byte) (int, error) {
	if b.left >= lowWater+lowWaterTail {
		b.conn.set(lowWater)
	} else {
		b.conn.set(1)
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
