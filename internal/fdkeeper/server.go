package fdkeeper

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// maxConns is how many processes one server talks to.
	maxConns = 64
	// sendLimit is how long a client may leave a reply unread.
	sendLimit = 10 * time.Second
	// listPage is when a page of a list is long enough.
	listPage = MaxMeta - entryHeader - MaxName
)

// Listen makes the socket at path, which only its owner can connect to. A
// socket that an earlier process has left is replaced; one that a process still
// listens on is an error.
func Listen(ctx context.Context, path string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: path, Net: "unixpacket"}
	var d net.Dialer
	if c, err := d.DialContext(ctx, addr.Net, path); err == nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: another process does", path), c.Close())
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() == os.ModeSocket {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace socket %s: %w", path, err)
	}
	l, err := net.ListenUnix(addr.Net, addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// Server holds descriptors in this process. It is ready when made by NewServer.
type Server struct {
	log      *slog.Logger
	instance [8]byte

	mu   sync.Mutex
	sets map[string]*held
	// names are the keys of sets in order, or nil if they must be sorted again.
	names   []string
	fds     int
	clients int
}

// held is a set as plain numbers: an os.File per descriptor would cost ten
// times the memory. It is closed when nobody refers to it any more.
type held struct {
	stamp uint64
	meta  []byte
	fds   []int
	refs  int // guarded by Server.mu
}

// NewServer returns a server that holds nothing. A nil log means none.
func NewServer(log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: log, sets: make(map[string]*held)}
	_, _ = rand.Read(s.instance[:]) // never fails
	return s
}

// Serve answers clients until ctx ends, and then closes l and its connections.
// It keeps what it holds: Serve may be called again.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Warn("The keeper's socket could not be closed.", "error", err)
		}
	})
	room := make(chan struct{}, maxConns)
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close() // nothing was said on it
			}
			return nil
		}
		if err != nil {
			if err := s.acceptFailed(ctx, err); err != nil {
				return err
			}
			continue
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			_ = c.Close() // nothing was said on it
			return nil
		}
		wg.Go(func() {
			defer func() { <-room }()
			s.count(1)
			defer s.count(-1)
			s.serveConn(ctx, c)
		})
	}
}

func (s *Server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients += n
}

// Clients returns how many connections there are.
func (s *Server) Clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients
}

// acceptFailed returns nil if accepting should go on: a shortage of descriptors
// passes, and must not make the keeper let go of those that it has.
func (s *Server) acceptFailed(ctx context.Context, err error) error {
	if errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("accept keeper's clients: %w", err)
	}
	s.log.Error("The keeper could not accept a client.", "error", err)
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return nil
}

func (s *Server) serveConn(ctx context.Context, uc *net.UnixConn) {
	closeConn := sync.OnceFunc(func() { _ = uc.Close() }) // each reply was already sent or given up
	defer closeConn()
	defer context.AfterFunc(ctx, closeConn)()
	c := &conn{UnixConn: uc}
	if err := checkPeer(uc); err != nil {
		s.log.Warn("The keeper refused a client.", "error", err)
		_ = s.reply(c, errorMessage(err), nil) // the connection ends anyway
		return
	}
	if err := s.converse(c); !errors.Is(err, io.EOF) && ctx.Err() == nil {
		s.log.Warn("The keeper ended a connection.", "error", err)
	}
}

// converse answers requests until the client hangs up, which is io.EOF, or one
// is against the protocol.
func (s *Server) converse(c *conn) error {
	hello := false
	for {
		m, fds, err := c.receive()
		if errors.Is(err, ErrFull) {
			closeAll(fds)
			if err := s.reply(c, errorMessage(err), nil); err != nil {
				return err
			}
			continue
		}
		if err == nil {
			err = s.allowed(m, len(fds), hello)
		}
		if err != nil {
			closeAll(fds)
			if !errors.Is(err, io.EOF) {
				_ = s.reply(c, errorMessage(err), nil) // err is what matters
			}
			return err
		}
		hello = true
		if err := s.handle(c, m, fds); err != nil {
			return err
		}
	}
}

// allowed checks what does not depend on what is held.
func (s *Server) allowed(m message, fds int, hello bool) error {
	switch {
	case m.kind == kindHello && string(m.body) != helloBody:
		return fmt.Errorf("a hello that is not for a keeper: %w", ErrProtocol)
	case m.kind == kindHello && m.stamp != Version:
		return fmt.Errorf("version %d, this keeper speaks %d: %w", m.stamp, Version, ErrProtocol)
	case !hello && m.kind != kindHello:
		return fmt.Errorf("request before hello: %w", ErrProtocol)
	case m.kind > kindDrop:
		return fmt.Errorf("a client sent a reply: %w", ErrProtocol)
	case (m.kind == kindPut) != (fds > 0):
		return fmt.Errorf("%d descriptors in a message of kind %d: %w", fds, m.kind, ErrProtocol)
	case m.name == "" && (m.kind == kindPut || m.kind == kindGet || m.kind == kindDrop):
		return fmt.Errorf("request without a name: %w", ErrProtocol)
	}
	return nil
}

// handle answers one request. fds belong to it.
func (s *Server) handle(c *conn, m message, fds []int) error {
	switch m.kind {
	case kindPut:
		if err := s.put(m, fds); err != nil {
			closeAll(fds)
			return s.reply(c, errorMessage(err), nil)
		}
		return s.reply(c, message{kind: kindOK}, nil)
	case kindGet:
		return s.sendSet(c, m.name)
	case kindDrop:
		s.drop(m.name)
		return s.reply(c, message{kind: kindOK}, nil)
	case kindList:
		return s.reply(c, s.list(m.name), nil)
	}
	body := append([]byte(helloBody), s.instance[:]...)
	return s.reply(c, message{kind: kindHello, stamp: Version, body: body}, nil)
}

func (s *Server) reply(c *conn, m message, fds []int) error {
	if err := c.SetWriteDeadline(time.Now().Add(sendLimit)); err != nil {
		return err
	}
	return c.send(m, fds)
}

// put takes the descriptors over, unless it returns an error.
func (s *Server) put(m message, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.sets[m.name]
	if old != nil && old.stamp > m.stamp {
		return fmt.Errorf("put %q: %w", m.name, ErrStale)
	}
	s.sets[m.name] = &held{stamp: m.stamp, meta: slices.Clone(m.body), fds: fds, refs: 1}
	s.fds += len(fds)
	if old != nil {
		s.letGo(old)
	} else {
		s.names = nil
	}
	return nil
}

// sendSet keeps the set open while it is sent: else another client could have
// its numbers closed and used again for other descriptors.
func (s *Server) sendSet(c *conn, name string) error {
	s.mu.Lock()
	h := s.sets[name]
	if h != nil {
		h.refs++
	}
	s.mu.Unlock()
	if h == nil {
		return s.reply(c, errorMessage(fmt.Errorf("get %q: %w", name, ErrNotFound)), nil)
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.letGo(h)
	}()
	return s.reply(c, message{kind: kindSet, name: name, stamp: h.stamp, body: h.meta}, h.fds)
}

func (s *Server) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.sets[name]; h != nil {
		delete(s.sets, name)
		s.names = nil
		s.letGo(h)
	}
}

// letGo gives up one reference. mu is held.
func (s *Server) letGo(h *held) {
	if h.refs--; h.refs == 0 {
		closeAll(h.fds)
		s.fds -= len(h.fds)
	}
}

// list returns a page of names after the given one.
func (s *Server) list(after string) message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names = make([]string, 0, len(s.sets))
		for name := range s.sets {
			s.names = append(s.names, name)
		}
		slices.Sort(s.names)
	}
	i, found := slices.BinarySearchFunc(s.names, after, cmp.Compare[string])
	if found {
		i++
	}
	m := message{kind: kindEntries}
	for _, name := range s.names[i:] {
		if len(m.body) > listPage {
			m.stamp = 1
			break
		}
		h := s.sets[name]
		m.body = appendEntry(m.body, Entry{Name: name, Stamp: h.stamp, Files: len(h.fds)})
	}
	return m
}

// Held returns how many sets and descriptors the server has.
func (s *Server) Held() (sets, fds int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sets), s.fds
}

// Close closes all that is held. Serve must have returned.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.sets {
		s.letGo(h)
	}
	clear(s.sets)
	s.names = nil
	return nil
}

// instanceOf reads the instance from a hello's reply.
func instanceOf(m message) (uint64, error) {
	if m.kind != kindHello || m.stamp != Version || len(m.body) != len(helloBody)+8 {
		return 0, fmt.Errorf("reply to hello: %w", ErrProtocol)
	}
	return binary.BigEndian.Uint64(m.body[len(helloBody):]), nil
}
