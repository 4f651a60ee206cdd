// Package swarm is a daemon's end of the stream to its supernode.
//
// Client.Run keeps one stream open, to the first supernode of its list that
// answers, and opens another when it breaks. After every connect the handler
// announces anew what it holds and wants: the supernode may have forgotten
// everything. Messages that were queued for a broken stream are dropped, because
// the announcement that follows says the same.
//
// Handler methods are called on one goroutine, in the order in which messages
// arrive, and must not block.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/secret"
	"github.com/damselfly-io/damselfly/internal/ticket"
)

// ErrUnreachable says that no supernode is connected.
var ErrUnreachable = errors.New("no supernode is reachable")

// Handler receives what the supernode says.
type Handler interface {
	// Connected is called when a stream is open, before any of its messages.
	// What it sends comes first on the stream.
	Connected()
	// Disconnected is called when the stream has broken.
	Disconnected()
	// Receive handles one message.
	Receive(*apiv1.SupernodeMessage)
}

// Options configures a Client. Supernodes and Hello are required.
type Options struct {
	// Supernodes are gRPC addresses, HOST:PORT, tried in order.
	Supernodes []string
	Hello      *apiv1.Hello
	JoinToken  string
	Log        *slog.Logger
	// Backoff returns the pause before connect attempt n, from 1; default
	// 100 ms doubled up to 3 s, with jitter.
	Backoff func(n int) time.Duration
	// ConnectTimeout bounds one attempt; default 3 s.
	ConnectTimeout time.Duration
}

// Client talks to the supernode.
type Client struct {
	o Options

	mu      sync.Mutex
	conn    *grpc.ClientConn // nil while disconnected
	name    string           // the supernode connected to
	key     ticket.Key
	trust   [][]byte  // PEM public keys of the last supernode
	since   time.Time // of the last change of conn
	tried   chan struct{}
	queue   []*apiv1.PeerMessage
	signal  chan struct{}
	lastErr error
}

// New returns a client; Run makes it work.
func New(o Options) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Backoff == nil {
		o.Backoff = backoff
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = 3 * time.Second
	}
	return &Client{o: o, since: time.Now(), tried: make(chan struct{}), signal: make(chan struct{}, 1)}
}

func backoff(n int) time.Duration {
	d := min(100*time.Millisecond<<min(n, 10), 3*time.Second)
	return d/2 + rand.N(d/2) // #nosec G404 -- jitter
}

// replacedAttempt is where the pauses go on after another daemon has joined
// under this one's name: two of them must not push each other out all day.
const replacedAttempt = 5

// Run keeps a stream open until ctx ends.
func (c *Client) Run(ctx context.Context, h Handler) error {
	tried := sync.OnceFunc(func() { close(c.tried) })
	defer tried()
	for attempt := 0; ; {
		for _, addr := range c.o.Supernodes {
			connected, err := c.session(ctx, addr, h, tried)
			if ctx.Err() != nil {
				return nil
			}
			c.note(addr, err)
			if connected {
				attempt = 0
			}
			if status.Code(err) == codes.Aborted {
				attempt = replacedAttempt
			}
		}
		tried()
		attempt++
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.o.Backoff(attempt)):
		}
	}
}

// note keeps and logs why a session has ended, once for each reason.
func (c *Client) note(addr string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastErr == nil || err == nil || c.lastErr.Error() != err.Error() {
		c.o.Log.Warn("not connected to the supernode", "address", addr, "error", err)
	}
	c.lastErr = err
}

// session holds one stream until it breaks. connected says that the supernode
// had accepted it.
func (c *Client) session(ctx context.Context, addr string, h Handler, tried func()) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(secret.Join{Token: c.o.JoinToken}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(16<<10),
	)
	if err != nil {
		return false, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to save
	stream, welcome, err := c.open(ctx, conn)
	if err != nil {
		return false, err
	}
	c.attach(conn, addr, welcome)
	h.Connected()
	tried()
	c.o.Log.Info("connected to the supernode", "address", addr)

	var sending sync.WaitGroup
	sending.Go(func() {
		if c.send(ctx, stream) != nil {
			cancel()
		}
	})
	for err == nil {
		var m *apiv1.SupernodeMessage
		if m, err = stream.Recv(); err == nil {
			h.Receive(m)
		}
	}
	cancel()
	sending.Wait()
	c.detach()
	h.Disconnected()
	return true, err
}

// open connects, says Hello and waits for Welcome.
func (c *Client) open(ctx context.Context, conn *grpc.ClientConn) (apiv1.Swarm_ConnectClient, *apiv1.Welcome, error) {
	timeout := time.AfterFunc(c.o.ConnectTimeout, func() { _ = conn.Close() })
	defer timeout.Stop()
	conn.Connect()
	stream, err := apiv1.NewSwarmClient(conn).Connect(ctx, grpc.WaitForReady(false))
	if err != nil {
		return nil, nil, err
	}
	hello := &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Hello{Hello: c.o.Hello}}
	if err := stream.Send(hello); err != nil {
		_, err = stream.Recv() // tells why
		return nil, nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	w := first.GetWelcome()
	if w == nil || len(w.ServingKey) == 0 {
		return nil, nil, errors.New("the supernode did not send Welcome")
	}
	return stream, w, nil
}

func (c *Client) attach(conn *grpc.ClientConn, name string, w *apiv1.Welcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.name, c.since, c.queue, c.lastErr = conn, name, time.Now(), nil, nil
	c.key, c.trust = w.ServingKey, w.TrustKeys
}

func (c *Client) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.since, c.queue = nil, time.Now(), nil
}

// Send queues m; without a connection it is dropped.
func (c *Client) Send(m *apiv1.PeerMessage) {
	c.mu.Lock()
	if c.conn != nil {
		c.queue = appendMerged(c.queue, m)
	}
	c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// appendMerged joins reports of finished pieces of one task that wait together.
func appendMerged(queue []*apiv1.PeerMessage, m *apiv1.PeerMessage) []*apiv1.PeerMessage {
	f := m.GetFinished()
	if f == nil || len(queue) == 0 {
		return append(queue, m)
	}
	last := queue[len(queue)-1].GetFinished()
	if last == nil || last.TaskId != f.TaskId {
		return append(queue, m)
	}
	last.Pieces = append(last.Pieces, f.Pieces...)
	last.Complete = last.Complete || f.Complete
	return queue
}

// send sends what is queued until ctx ends.
func (c *Client) send(ctx context.Context, stream apiv1.Swarm_ConnectClient) error {
	for {
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, m := range queue {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.signal:
		}
	}
}

// Connected reports whether a supernode is connected, and since when that is
// so.
func (c *Client) Connected() (yes bool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil, c.since
}

// Tried is closed when the first attempt to connect has ended, well or not.
func (c *Client) Tried() <-chan struct{} { return c.tried }

// ServingKey returns the key that tickets for this node are checked with. It
// outlasts the connection: peers go on among themselves without the supernode.
func (c *Client) ServingKey() ticket.Key {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.key
}

// TrustKeys returns the PEM public keys that the supernode vouches for images
// with. They outlast the connection.
func (c *Client) TrustKeys() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trust
}

// Exchange lets the supernode perform a small registry request. ErrUnreachable
// when there is none to ask.
func (c *Client) Exchange(ctx context.Context, r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error) {
	return ask(ctx, c, r, apiv1.SwarmClient.Exchange)
}

// ReportAccess tells the supernode what a mount has read. ErrUnreachable when
// there is none to tell.
func (c *Client) ReportAccess(ctx context.Context, r *apiv1.ReportAccessRequest) (*apiv1.ReportAccessResponse, error) {
	return ask(ctx, c, r, apiv1.SwarmClient.ReportAccess)
}

// Profile asks the supernode what mounts of an image read. ErrUnreachable when
// there is none to ask.
func (c *Client) Profile(ctx context.Context, r *apiv1.ProfileRequest) (*apiv1.ProfileResponse, error) {
	return ask(ctx, c, r, apiv1.SwarmClient.Profile)
}

// ask makes a call to the supernode that is connected.
func ask[Q, A any](ctx context.Context, c *Client, r Q, call func(apiv1.SwarmClient, context.Context, Q, ...grpc.CallOption) (A, error)) (none A, err error) {
	c.mu.Lock()
	conn, name := c.conn, c.name
	c.mu.Unlock()
	if conn == nil {
		return none, ErrUnreachable
	}
	resp, err := call(apiv1.NewSwarmClient(conn), ctx, r)
	// The service answers with neither of these by itself: the connection has
	// broken, or this end has closed it because the stream had.
	if code := status.Code(err); code == codes.Unavailable || code == codes.Canceled && ctx.Err() == nil {
		return none, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if err != nil {
		return none, fmt.Errorf("asking the supernode %s: %w", name, err)
	}
	return resp, nil
}

// IsTooLarge reports that an exchange must be made with the origin itself.
func IsTooLarge(err error) bool { return status.Code(err) == codes.ResourceExhausted }
