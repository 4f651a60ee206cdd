package fdkeeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// conn sends and receives messages with descriptors. One goroutine uses it.
type conn struct {
	*net.UnixConn
	buf [maxMessage + 1]byte
	oob [1200]byte // room for 253 descriptors
}

// send sends m with fds, which must stay open until it returns.
func (c *conn) send(m message, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	b := m.encode()
	n, oobn, err := c.WriteMsgUnix(b, rights, nil)
	if errors.Is(err, unix.ETOOMANYREFS) {
		return fmt.Errorf("send descriptors: %w: %w", ErrFull, err)
	}
	if err != nil {
		return err
	}
	if n != len(b) || oobn != len(rights) {
		return fmt.Errorf("sent %d of %d bytes: %w", n, len(b), io.ErrShortWrite)
	}
	return nil
}

// receive returns the next message; its body is valid until the next call. The
// descriptors belong to the caller, also with an error that wraps ErrFull: then
// there were more.
func (c *conn) receive() (message, []int, error) {
	n, oobn, flags, _, err := c.ReadMsgUnix(c.buf[:], c.oob[:])
	// Descriptors can come with the empty packet that reads as io.EOF.
	fds, bad := rights(c.oob[:oobn])
	if err == nil {
		err = bad
	}
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = fmt.Errorf("message of more than %d bytes: %w", maxMessage, ErrProtocol)
	}
	var m message
	if err == nil {
		m, err = decode(c.buf[:n])
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		return m, fds, fmt.Errorf("receive descriptors: %w: limit of open files reached", ErrFull)
	}
	if err != nil {
		closeAll(fds)
		return message{}, nil, err
	}
	return m, fds, nil
}

// rights returns all descriptors in control messages. They are open, so with an
// error too they are returned.
func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w: %w", ErrProtocol, err)
	}
	var fds []int
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, parseErr := unix.ParseUnixRights(&m)
		if parseErr != nil {
			err = fmt.Errorf("control message: %w: %w", ErrProtocol, parseErr)
		}
		fds = append(fds, more...)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // nothing was written through it here
	}
}

// checkPeer refuses other users.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("find out who the peer is: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, inner); err != nil {
		return fmt.Errorf("find out who the peer is: %w", err)
	}
	if own := os.Geteuid(); int(cred.Uid) != own {
		return fmt.Errorf("%w: uid %d, this side %d", ErrDenied, cred.Uid, own)
	}
	return nil
}

// withFDs calls f with the descriptors of files, none of which is closed
// meanwhile.
func withFDs(files []*os.File, f func(fds []int) error) error {
	return collect(files, make([]int, 0, len(files)), f)
}

func collect(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = collect(files[1:], append(fds, int(fd)), f)
	})
	if err != nil {
		return fmt.Errorf("%s: %w: %w", files[0].Name(), os.ErrClosed, err) // the only reason there is
	}
	return inner
}

// newFiles makes files of fds, named after the set.
func newFiles(name string, fds []int) []*os.File {
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), fmt.Sprintf("%s[%d]", name, i))
	}
	return files
}
