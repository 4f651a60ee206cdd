package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// callLimit is how long one request may take if its context does not say less.
const callLimit = 10 * time.Second

// Client holds descriptors in a Server's process. It connects when it is first
// used, and again when the connection was lost.
type Client struct {
	path string

	// turn is held by the one request that uses the fields below.
	turn   chan struct{}
	conn   *conn
	closed bool
}

var _ Holder = (*Client)(nil)

// NewClient returns a client of the server that listens at path.
func NewClient(path string) *Client {
	return &Client{path: path, turn: make(chan struct{}, 1)}
}

// Close ends the connection. The server keeps what it holds.
func (c *Client) Close() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	c.closed = true
	return c.hangUp()
}

// Put has the server hold s.
func (c *Client) Put(ctx context.Context, s Set) error {
	if err := checkSet(s); err != nil {
		return fmt.Errorf("put %q: %w", s.Name, err)
	}
	return withFDs(s.Files, func(fds []int) error {
		m := message{kind: kindPut, name: s.Name, stamp: s.Stamp, body: s.Meta}
		return c.call(ctx, m, fds, kindOK, nil)
	})
}

// Get returns what the server holds.
func (c *Client) Get(ctx context.Context, name string) (Set, error) {
	if err := checkName(name); err != nil {
		return Set{}, fmt.Errorf("get: %w", err)
	}
	var s Set
	err := c.call(ctx, message{kind: kindGet, name: name}, nil, kindSet, func(m message, fds []int) error {
		if m.name != name || len(fds) == 0 {
			closeAll(fds)
			return fmt.Errorf("reply for %q with %d descriptors: %w", m.name, len(fds), ErrProtocol)
		}
		s = Set{Name: name, Stamp: m.stamp, Meta: slices.Clone(m.body), Files: newFiles(name, fds)}
		return nil
	})
	return s, err
}

// List returns what the server holds.
func (c *Client) List(ctx context.Context) ([]Entry, error) {
	var all []Entry
	for more := true; more; {
		m := message{kind: kindList}
		if len(all) > 0 {
			m.name = all[len(all)-1].Name
		}
		err := c.call(ctx, m, nil, kindEntries, func(reply message, fds []int) error {
			closeAll(fds)
			entries, err := decodeEntries(reply.body)
			if err != nil {
				return err
			}
			more = reply.stamp != 0
			if more && len(entries) == 0 || len(entries) > 0 && entries[0].Name <= m.name {
				return fmt.Errorf("list does not go on after %q: %w", m.name, ErrProtocol)
			}
			all = append(all, entries...)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Drop has the server close a set.
func (c *Client) Drop(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	return c.call(ctx, message{kind: kindDrop, name: name}, nil, kindOK, nil)
}

// Instance returns a number that the server made when it started: another one
// means that it holds nothing of before.
func (c *Client) Instance(ctx context.Context) (uint64, error) {
	var instance uint64
	err := c.call(ctx, hello(), nil, kindHello, func(m message, fds []int) (err error) {
		closeAll(fds)
		instance, err = instanceOf(m)
		return err
	})
	return instance, err
}

func hello() message {
	return message{kind: kindHello, stamp: Version, body: []byte(helloBody)}
}

// call sends m and gives the reply to use. Once, it connects again: every
// request may be repeated.
func (c *Client) call(ctx context.Context, m message, fds []int, want kind, use func(message, []int) error) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("keeper %s: %w", c.path, context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	fresh := c.conn == nil
	err := c.try(ctx, m, fds, want, use)
	if err != nil && c.conn == nil && !fresh && ctx.Err() == nil && !errors.Is(err, ErrProtocol) {
		err = c.try(ctx, m, fds, want, use)
	}
	if err != nil {
		return fmt.Errorf("keeper %s: %w", c.path, err)
	}
	return nil
}

// try leaves the client connected only if the conversation can go on.
func (c *Client) try(ctx context.Context, m message, fds []int, want kind, use func(message, []int) error) error {
	if c.closed {
		return net.ErrClosed
	}
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return err
		}
	}
	reply, got, err := c.exchange(ctx, m, fds)
	if err != nil {
		return errors.Join(err, c.hangUp())
	}
	switch {
	case reply.kind == kindError:
		closeAll(got)
		err = reply.err()
		if errors.Is(err, ErrProtocol) || errors.Is(err, ErrDenied) {
			err = errors.Join(err, c.hangUp())
		}
		return err
	case reply.kind != want:
		closeAll(got)
		return errors.Join(fmt.Errorf("reply of kind %d: %w", reply.kind, ErrProtocol), c.hangUp())
	case use == nil:
		closeAll(got)
		return nil
	}
	return use(reply, got)
}

func (c *Client) connect(ctx context.Context) error {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unixpacket", c.path)
	if err != nil {
		return err
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return errors.Join(fmt.Errorf("connected by %T: %w", nc, ErrProtocol), nc.Close())
	}
	c.conn = &conn{UnixConn: uc}
	if err := c.greet(ctx); err != nil {
		return errors.Join(err, c.hangUp())
	}
	return nil
}

// greet makes sure who the server is, before it gets descriptors.
func (c *Client) greet(ctx context.Context) error {
	if err := checkPeer(c.conn.UnixConn); err != nil {
		return err
	}
	m, fds, err := c.exchange(ctx, hello(), nil)
	closeAll(fds)
	if err != nil {
		return err
	}
	if m.kind == kindError {
		return m.err()
	}
	_, err = instanceOf(m)
	return err
}

// exchange sends a request and waits for its reply. The body of the reply is
// valid until the next one. With an error there are no descriptors.
func (c *Client) exchange(ctx context.Context, m message, fds []int) (message, []int, error) {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return message{}, nil, err
	}
	conn := c.conn
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_ = conn.SetDeadline(time.Unix(1, 0)) // could be set above
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	err := c.conn.send(m, fds)
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return message{}, nil, ctxError(ctx, err)
	}
	// After EPIPE there may still be the reason why the server hung up.
	reply, got, receiveErr := c.conn.receive()
	if receiveErr != nil {
		closeAll(got)
		return message{}, nil, ctxError(ctx, errors.Join(err, receiveErr))
	}
	return reply, got, nil
}

// ctxError prefers the reason why a request was given up.
func ctxError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

func (c *Client) hangUp() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}
