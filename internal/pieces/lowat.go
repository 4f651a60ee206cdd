package pieces

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http/httptrace"
	"os"
	"time"

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
	// lowWaterWait is how long a read may wait for lowWater bytes. A sender that
	// wants a larger window than is left while bytes wait unread, as on links
	// with very large packets, would wait for the reader as the reader for it. A
	// link that takes longer wakes its reader seldom enough as it is.
	lowWaterWait = 10 * time.Millisecond
)

// lowWaterConn is a TCP connection whose low-water mark (SO_RCVLOWAT) can be set.
type lowWaterConn struct {
	*net.TCPConn
	// Used by one reader at a time.
	mark  int  // set last
	plain bool // it has stalled once, or its packets are too large: leave it alone
}

// Read reads as TCP does, and gives the mark up for good when it stalls.
func (c *lowWaterConn) Read(p []byte) (int, error) {
	if c.mark <= 1 {
		return c.TCPConn.Read(p)
	}
	if err := c.SetReadDeadline(time.Now().Add(lowWaterWait)); err != nil {
		return 0, err
	}
	n, err := c.TCPConn.Read(p)
	if resetErr := c.SetReadDeadline(time.Time{}); resetErr != nil && err == nil {
		err = resetErr
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	c.set(1)
	c.plain = true
	if n > 0 {
		return n, nil
	}
	return c.TCPConn.Read(p)
}

// dialLowWater makes dial return connections with a settable mark. Others than
// TCP stay as they are.
func dialLowWater(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok && err == nil {
			return &lowWaterConn{TCPConn: tcp, mark: 1, plain: isLoopback(tcp.RemoteAddr())}, nil
		}
		return c, err
	}
}

// isLoopback tells the interface whose packets are as large as a window.
func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// set lets reads wait for n bytes. A kernel that refuses costs speed only.
func (c *lowWaterConn) set(n int) {
	if c.mark == n || c.plain && n > 1 {
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
