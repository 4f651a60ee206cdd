package pieces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Names of the protocol's headers.
const (
	HeaderTicket   = "X-Damselfly-Ticket"
	HeaderPriority = "X-Damselfly-Priority"
)

// Answers of a parent that are not the piece.
var (
	// ErrNotHeld: the parent does not have the piece (any more).
	ErrNotHeld = errors.New("parent does not hold the piece")
	// ErrDenied: the parent refused the ticket.
	ErrDenied = errors.New("parent refused the ticket")
	// ErrBusy: the parent has too many uploads waiting.
	ErrBusy = errors.New("parent is busy")
)

// Parent is where to fetch pieces of one task.
type Parent struct {
	Address string // HOST:PORT
	Ticket  string
}

// Client fetches pieces from parents. It is safe for concurrent use and keeps
// connections open between requests.
type Client struct {
	http      *http.Client
	transport *http.Transport
}

// ClientOptions configures a Client; the zero value works.
type ClientOptions struct {
	// DialTimeout bounds connecting to a parent; default 2 s.
	DialTimeout time.Duration
	// Dial replaces the network; default TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// NewClient returns a client; Close ends its idle connections.
func NewClient(o ClientOptions) *Client {
	if o.DialTimeout == 0 {
		o.DialTimeout = 2 * time.Second
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: o.DialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	tr := &http.Transport{
		DialContext:         dialLowWater(dial),
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     60 * time.Second,
		DisableCompression:  true,
		// Smaller than the store's copy buffer, so that piece bytes are read
		// straight into it.
		ReadBufferSize: 16 << 10,
		// A parent may be hostile.
		MaxResponseHeaderBytes: 16 << 10,
	}
	return &Client{transport: tr, http: &http.Client{
		Transport: tr,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a ticket goes to its parent only
		},
	}}
}

// Close ends idle connections. Requests under way end with their contexts.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Piece asks parent for piece i of n bytes, to be had within wait. The reader
// ends with io.ErrUnexpectedEOF if the parent sends less. The caller closes it
// and checks what it read.
func (c *Client) Piece(ctx context.Context, p Parent, id task.ID, i int, n int64, prio Priority, wait time.Duration) (io.ReadCloser, error) {
	query := ""
	if wait > 0 {
		query = "?wait=" + url.QueryEscape(wait.String())
	}
	var conn *lowWaterConn
	resp, err := c.get(withConn(ctx, &conn), p, "/v1/tasks/"+string(id)+"/pieces/"+strconv.Itoa(i)+query, prio)
	if err != nil {
		return nil, fmt.Errorf("fetching piece %d of %s from %s: %w", i, id.Short(), p.Address, err)
	}
	if resp.ContentLength != n {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("fetching piece %d of %s from %s: parent sends %d bytes, want %d", i, id.Short(), p.Address, resp.ContentLength, n)
	}
	if conn == nil {
		return resp.Body, nil
	}
	return &pieceBody{ReadCloser: resp.Body, conn: conn, left: n}, nil
}

// Haves reads the feed of parent's pieces and calls have for each run of them
// until ctx ends or the feed breaks; it always returns an error. have is called
// on the caller's goroutine.
func (c *Client) Haves(ctx context.Context, p Parent, id task.ID, pieces int, have func(first, count int)) error {
	resp, err := c.get(ctx, p, "/v1/tasks/"+string(id)+"/haves", Demand)
	if err != nil {
		return fmt.Errorf("haves of %s from %s: %w", id.Short(), p.Address, err)
	}
	defer resp.Body.Close()
	return fmt.Errorf("haves of %s from %s: %w", id.Short(), p.Address, readFeed(resp.Body, pieces, have))
}

func (c *Client) get(ctx context.Context, p Parent, path string, prio Priority) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Address+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(HeaderTicket, p.Ticket)
	if prio != Demand {
		req.Header.Set(HeaderPriority, prio.String())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	_ = resp.Body.Close()
	detail := strings.TrimSpace(string(text))
	switch resp.StatusCode {
	case http.StatusNotFound:
		return nil, fmt.Errorf("%w: %s", ErrNotHeld, detail)
	case http.StatusForbidden:
		return nil, fmt.Errorf("%w: %s", ErrDenied, detail)
	case http.StatusServiceUnavailable:
		return nil, fmt.Errorf("%w: %s", ErrBusy, detail)
	}
	return nil, fmt.Errorf("status %d: %s", resp.StatusCode, detail)
}
