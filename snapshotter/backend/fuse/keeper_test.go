package fuse_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
)

// keeper is a fuse.Keeper in this process.
type keeper struct {
	mu   sync.Mutex
	kept map[string]kept
}

type kept struct {
	meta []byte
	fds  []int
}

func newKeeper() *keeper { return &keeper{kept: map[string]kept{}} }

func (k *keeper) Put(name string, meta []byte, files ...*os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(name)
	var e kept
	e.meta = meta
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		e.fds = append(e.fds, fd)
	}
	k.kept[name] = e
	return nil
}

func (k *keeper) Get(name string) ([]byte, []*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.kept[name]
	if !ok {
		return nil, nil, fmt.Errorf("nothing is kept as %s: %w", name, fs.ErrNotExist)
	}
	var files []*os.File
	for _, fd := range e.fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, os.NewFile(uintptr(dup), name))
	}
	return e.meta, files, nil
}

func (k *keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop(name)
	return nil
}

func (k *keeper) drop(name string) {
	for _, fd := range k.kept[name].fds {
		_ = unix.Close(fd)
	}
	delete(k.kept, name)
}

// keepers are those of nodes, by their directories.
type keepers struct {
	mu sync.Mutex
	by map[string]*keeper
}

func (k *keepers) of(dir string) *keeper {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.by[dir] == nil {
		k.by[dir] = newKeeper()
	}
	return k.by[dir]
}

// message is what a process and its keeper say to each other; the descriptor
// goes along.
type message struct {
	Op, Name string
	Meta     []byte
	Err      string
	Absent   bool
}

func send(c *net.UnixConn, m message, files ...*os.File) error {
	p, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	_, _, err = c.WriteMsgUnix(p, unix.UnixRights(fds...), nil)
	return err
}

func receive(c *net.UnixConn) (m message, files []*os.File, err error) {
	p, oob := make([]byte, 1<<16), make([]byte, 1<<10)
	n, oobn, _, _, err := c.ReadMsgUnix(p, oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, net.ErrClosed
	}
	controls, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return m, nil, err
	}
	for i := range controls {
		fds, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			return m, nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "kept"))
		}
	}
	return m, files, json.Unmarshal(p[:n], &m)
}

// serve answers a remoteKeeper until it is gone. It tells of messages that are
// not for the keeper.
func (k *keeper) serve(t testing.TB, c *net.UnixConn, told chan<- string) {
	for {
		m, files, err := receive(c)
		if err != nil {
			return
		}
		answer := message{}
		var kept []*os.File
		switch m.Op {
		case "put":
			err = k.Put(m.Name, m.Meta, files...)
		case "get":
			answer.Meta, kept, err = k.Get(m.Name)
		case "drop":
			err = k.Drop(m.Name)
		default:
			told <- m.Op
		}
		if err != nil {
			answer.Err, answer.Absent = err.Error(), errors.Is(err, fs.ErrNotExist)
		}
		if err := send(c, answer, kept...); err != nil {
			t.Logf("answer a process: %v", err)
		}
		for _, f := range append(files, kept...) {
			_ = f.Close()
		}
	}
}

// remoteKeeper is a keeper in another process.
type remoteKeeper struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

var _ fuse.Keeper = (*remoteKeeper)(nil)

func (k *remoteKeeper) call(m message, files ...*os.File) (message, []*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := send(k.conn, m, files...); err != nil {
		return m, nil, err
	}
	answer, kept, err := receive(k.conn)
	switch {
	case err != nil:
	case answer.Absent:
		err = fmt.Errorf("%s: %w", answer.Err, fs.ErrNotExist)
	case answer.Err != "":
		err = errors.New(answer.Err)
	}
	return answer, kept, err
}

func (k *remoteKeeper) Put(name string, meta []byte, files ...*os.File) error {
	_, _, err := k.call(message{Op: "put", Name: name, Meta: meta}, files...)
	return err
}

func (k *remoteKeeper) Get(name string) ([]byte, []*os.File, error) {
	m, files, err := k.call(message{Op: "get", Name: name})
	return m.Meta, files, err
}

func (k *remoteKeeper) Drop(name string) error {
	_, _, err := k.call(message{Op: "drop", Name: name})
	return err
}

// tell says something to the one who has started this process.
func (k *remoteKeeper) tell(what string) error {
	_, _, err := k.call(message{Op: what})
	return err
}
