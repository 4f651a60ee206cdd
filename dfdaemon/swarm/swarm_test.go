package swarm_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/swarm"
	"github.com/damselfly-io/damselfly/internal/secret"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// supernode is a server whose streams the test drives.
type supernode struct {
	apiv1.UnimplementedSwarmServer
	mu       sync.Mutex
	hellos   []*apiv1.Hello
	got      [][]*apiv1.PeerMessage // by stream, without Hello
	welcome  *apiv1.SupernodeMessage
	held     chan struct{} // if not nil, streams are not read until it is closed
	say      chan *apiv1.SupernodeMessage
	exchange func(*apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error)

	addr string
	stop func()
}

func welcome(key string) *apiv1.SupernodeMessage {
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Welcome{Welcome: &apiv1.Welcome{ServingKey: []byte(key)}}}
}

// start serves s at addr until the test ends or s.stop is called.
func (s *supernode) start(t *testing.T, addr, token string) {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(secret.Join{Token: token}.ServerOptions()...)
	apiv1.RegisterSwarmServer(srv, s)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	s.addr = lis.Addr().String()
	s.stop = sync.OnceFunc(func() {
		srv.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
}

func newSupernode(t *testing.T) *supernode {
	t.Helper()
	s := &supernode{welcome: welcome("key-1"), say: make(chan *apiv1.SupernodeMessage)}
	s.start(t, "127.0.0.1:0", "")
	return s
}

func (s *supernode) Connect(stream apiv1.Swarm_ConnectServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	n := len(s.got)
	s.hellos, s.got = append(s.hellos, first.GetHello()), append(s.got, nil)
	answer, held := s.welcome, s.held
	s.mu.Unlock()
	if err := stream.Send(answer); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case m := <-s.say:
				_ = stream.Send(m)
			case <-ctx.Done():
				return
			}
		}
	})
	defer sending.Wait()
	defer cancel()
	if held != nil {
		select {
		case <-held:
		case <-stream.Context().Done():
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.got[n] = append(s.got[n], m)
		s.mu.Unlock()
		if m.GetLeave().GetTaskId() == "hang up" {
			return status.Error(codes.Aborted, "as asked")
		}
	}
}

func (s *supernode) Exchange(_ context.Context, r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error) {
	return s.exchange(r)
}

// received returns what stream n has brought.
func (s *supernode) received(n int) []*apiv1.PeerMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n >= len(s.got) {
		return nil
	}
	return append([]*apiv1.PeerMessage(nil), s.got[n]...)
}

// handler announces one task on every connection.
type handler struct {
	c *swarm.Client

	mu           sync.Mutex
	events       []string
	announcement *apiv1.PeerMessage
}

func (h *handler) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, what)
}

func (h *handler) log() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.events, " ")
}

func (h *handler) Connected() {
	h.note("connected")
	if h.announcement != nil {
		h.c.Send(h.announcement)
	}
}
func (h *handler) Disconnected() { h.note("disconnected") }
func (h *handler) Receive(m *apiv1.SupernodeMessage) {
	h.note("revoked:" + m.GetRevoked().GetTaskId())
}

func leave(id string) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Leave{Leave: &apiv1.Leave{TaskId: id}}}
}

func finished(id string, complete bool, pieces ...uint32) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Finished{Finished: &apiv1.Finished{TaskId: id, Pieces: pieces, Complete: complete}}}
}

// run starts a client of the supernodes; it ends with the test.
func run(t *testing.T, o swarm.Options) (*swarm.Client, *handler) {
	t.Helper()
	if o.Backoff == nil {
		o.Backoff = func(int) time.Duration { return time.Millisecond }
	}
	o.Hello = &apiv1.Hello{Name: "node-1", Zone: "zone-1", PeerAddress: "127.0.0.1:1"}
	c := swarm.New(o)
	h := &handler{c: c, announcement: leave("announced")}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c, h
}

func isUp(c *swarm.Client) func() bool {
	return func() bool { up, _ := c.Connected(); return up }
}

func TestConnectAnnouncesFirst(t *testing.T) {
	s := newSupernode(t)
	c, h := run(t, swarm.Options{Supernodes: []string{s.addr}})
	<-c.Tried()
	testenv.Eventually(t, func() bool { return len(s.received(0)) == 1 }, "the announcement")
	c.Send(leave("later"))
	testenv.Eventually(t, func() bool { return len(s.received(0)) == 2 }, "the message")
	if got := s.received(0); got[0].GetLeave().TaskId != "announced" || got[1].GetLeave().TaskId != "later" {
		t.Errorf("messages %v", got)
	}
	if hello := s.hellos[0]; hello.Name != "node-1" || hello.Zone != "zone-1" {
		t.Errorf("Hello %v", hello)
	}
	if string(c.ServingKey()) != "key-1" {
		t.Errorf("serving key %q", c.ServingKey())
	}
	s.say <- &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Revoked{Revoked: &apiv1.Revoked{TaskId: "x"}}}
	testenv.Eventually(t, func() bool { return h.log() == "connected revoked:x" }, "the supernode's message")
}

func TestReconnectAnnouncesAnewAndKeepsTheKey(t *testing.T) {
	s := newSupernode(t)
	c, h := run(t, swarm.Options{Supernodes: []string{s.addr}})
	testenv.Eventually(t, isUp(c), "the connection")
	s.mu.Lock()
	s.welcome = welcome("key-2")
	s.mu.Unlock()
	c.Send(leave("hang up"))
	testenv.Eventually(t, func() bool { return strings.HasPrefix(h.log(), "connected disconnected connected") }, "another connection")
	testenv.Eventually(t, func() bool { return len(s.received(1)) > 0 }, "the announcement")
	if got := s.received(1); got[0].GetLeave().TaskId != "announced" {
		t.Errorf("first message on the second stream: %v", got[0])
	}
	if string(c.ServingKey()) != "key-2" {
		t.Errorf("serving key %q", c.ServingKey())
	}
	s.stop()
	testenv.Eventually(t, func() bool { return !isUp(c)() }, "the loss of the connection")
	if string(c.ServingKey()) != "key-2" {
		t.Error("the serving key is lost with the connection")
	}
	c.Send(leave("dropped"))
	addr := s.addr
	s = &supernode{welcome: welcome("key-3"), say: make(chan *apiv1.SupernodeMessage)}
	s.start(t, addr, "")
	testenv.Eventually(t, func() bool { return len(s.received(0)) > 0 }, "the announcement to the new supernode")
	if got := s.received(0); got[0].GetLeave().TaskId != "announced" {
		t.Errorf("a message from before the connection was sent: %v", got[0])
	}
}

func TestSecondSupernodeWhenTheFirstIsDown(t *testing.T) {
	s := newSupernode(t)
	down := newSupernode(t)
	down.stop()
	c, _ := run(t, swarm.Options{Supernodes: []string{down.addr, s.addr}})
	testenv.Eventually(t, isUp(c), "the connection")
}

func TestTriedAndBackoffWithoutASupernode(t *testing.T) {
	down := newSupernode(t)
	down.stop()
	var mu sync.Mutex
	var attempts []int
	c, h := run(t, swarm.Options{Supernodes: []string{down.addr}, Backoff: func(n int) time.Duration {
		mu.Lock()
		defer mu.Unlock()
		attempts = append(attempts, n)
		return time.Millisecond
	}})
	<-c.Tried()
	testenv.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(attempts) >= 3 }, "three attempts")
	mu.Lock()
	defer mu.Unlock()
	for i, n := range attempts {
		if n != i+1 {
			t.Errorf("attempts %v, want 1, 2, 3…", attempts)
			break
		}
	}
	if isUp(c)() || h.log() != "" {
		t.Errorf("connected to nobody: %q", h.log())
	}
	if _, err := c.Exchange(t.Context(), &apiv1.ExchangeRequest{}); !errors.Is(err, swarm.ErrUnreachable) {
		t.Errorf("Exchange: %v, want ErrUnreachable", err)
	}
}

func TestJoinToken(t *testing.T) {
	s := &supernode{welcome: welcome("key"), say: make(chan *apiv1.SupernodeMessage)}
	s.start(t, "127.0.0.1:0", "the-right-join-token")
	var log strings.Builder
	var mu sync.Mutex
	c, _ := run(t, swarm.Options{Supernodes: []string{s.addr}, Log: logger(&mu, &log)})
	<-c.Tried()
	testenv.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(log.String(), "join-token-file")
	}, "a message that tells what to do")
	if isUp(c)() {
		t.Error("a daemon without the token was let in")
	}
	c, _ = run(t, swarm.Options{Supernodes: []string{s.addr}, JoinToken: "the-right-join-token"})
	testenv.Eventually(t, isUp(c), "the connection with the token")
}

func TestNoWelcomeIsNoConnection(t *testing.T) {
	s := newSupernode(t)
	s.mu.Lock()
	s.welcome = welcome("")
	s.mu.Unlock()
	c, h := run(t, swarm.Options{Supernodes: []string{s.addr}})
	<-c.Tried()
	if isUp(c)() || h.log() != "" {
		t.Errorf("connected without a serving key: %q", h.log())
	}
}

func TestConnectTimeoutEndsASilentSupernode(t *testing.T) {
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }() // it accepts connections, and says nothing
	c, _ := run(t, swarm.Options{Supernodes: []string{lis.Addr().String()}, ConnectTimeout: 20 * time.Millisecond})
	<-c.Tried()
	if isUp(c)() {
		t.Error("connected")
	}
}

func TestWaitingReportsAreMerged(t *testing.T) {
	s := newSupernode(t)
	s.mu.Lock()
	s.held = make(chan struct{})
	s.mu.Unlock()
	c, _ := run(t, swarm.Options{Supernodes: []string{s.addr}})
	testenv.Eventually(t, isUp(c), "the connection")
	const pieces = 200_000 // more than the stream takes unread
	for i := range uint32(pieces) {
		c.Send(finished("a", false, i))
	}
	c.Send(finished("b", false, 7))
	c.Send(finished("b", true))
	c.Send(leave("a"))
	close(s.held)
	count := func() (messages int, order []string, seen map[uint32]bool) {
		seen = map[uint32]bool{}
		for _, m := range s.received(0) {
			if f := m.GetFinished(); f != nil {
				messages++
				if f.TaskId == "a" {
					for _, i := range f.Pieces {
						seen[i] = true
					}
				} else {
					order = append(order, f.TaskId)
				}
			}
			if m.GetLeave().GetTaskId() == "a" {
				order = append(order, "leave")
			}
		}
		return messages, order, seen
	}
	testenv.Eventually(t, func() bool { _, order, _ := count(); return len(order) > 0 && order[len(order)-1] == "leave" }, "all messages")
	messages, order, seen := count()
	if len(seen) != pieces || order[0] != "b" {
		t.Errorf("%d pieces of %d arrived, then %v", len(seen), pieces, order)
	}
	if messages >= pieces/2 {
		t.Errorf("%d messages for %d reports: not merged", messages, pieces)
	}
}

func TestExchange(t *testing.T) {
	s := newSupernode(t)
	answers := map[string]error{"unavailable": status.Error(codes.Unavailable, "x"), "large": status.Error(codes.ResourceExhausted, "x"), "fails": status.Error(codes.FailedPrecondition, "no route")}
	s.exchange = func(r *apiv1.ExchangeRequest) (*apiv1.ExchangeResponse, error) {
		return &apiv1.ExchangeResponse{Status: 200, Body: []byte(r.Url)}, answers[r.Url]
	}
	c, _ := run(t, swarm.Options{Supernodes: []string{s.addr}})
	testenv.Eventually(t, isUp(c), "the connection")
	ask := func(url string) (*apiv1.ExchangeResponse, error) {
		return c.Exchange(t.Context(), &apiv1.ExchangeRequest{Method: "GET", Url: url})
	}
	if resp, err := ask("fine"); err != nil || string(resp.Body) != "fine" {
		t.Errorf("Exchange: %v, %v", resp, err)
	}
	if _, err := ask("unavailable"); !errors.Is(err, swarm.ErrUnreachable) {
		t.Errorf("unavailable: %v", err)
	}
	if _, err := ask("large"); !swarm.IsTooLarge(err) || errors.Is(err, swarm.ErrUnreachable) {
		t.Errorf("large: %v", err)
	}
	if _, err := ask("fails"); err == nil || errors.Is(err, swarm.ErrUnreachable) || swarm.IsTooLarge(err) {
		t.Errorf("fails: %v", err)
	}
}
