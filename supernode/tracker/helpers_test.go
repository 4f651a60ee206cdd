package tracker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

var master = []byte("0123456789abcdef0123456789abcdef")

const self = "supernode" // the supernode's name

// cluster is a tracker with its cache and an origin of one content.
type cluster struct {
	*Tracker
	t       testing.TB
	content []byte
	id      task.ID
	table   task.Table
	origin  *httptest.Server
	now     atomic.Int64 // added to the time, in nanoseconds

	mu          sync.Mutex
	token       string // wanted by the origin; "": none
	corrupt     bool   // the origin sends other content
	quarantined []string
	daemons     sync.WaitGroup
}

func newCluster(t testing.TB, size int, configure func(*Options)) *cluster {
	t.Helper()
	c := &cluster{t: t, content: make([]byte, size), table: task.Uniform(int64(size))}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(c.content)
	c.id = task.BlobID(sha256.Sum256(c.content))
	c.origin = httptest.NewServer(c)
	t.Cleanup(c.origin.Close)

	client := pieces.NewClient(pieces.ClientOptions{})
	t.Cleanup(client.Close)
	o := Options{
		Name: self, Address: "192.0.2.1:8003", MasterKey: master, Pieces: client,
		Now:          func() time.Time { return time.Now().Add(time.Duration(c.now.Load())) },
		OnQuarantine: func(name string) { c.mu.Lock(); c.quarantined = append(c.quarantined, name); c.mu.Unlock() },
	}
	if configure != nil {
		configure(&o)
	}
	c.Tracker = New(o)
	store, err := piecestore.Open(piecestore.Options{Dir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	cache := cdn.New(cdn.Options{
		Store: store, Events: c.Tracker, Segment: 1 << 20, SpoolDir: t.TempDir(),
		Origin: origin.New(origin.Options{MaxAttempts: 2, Backoff: func(int) time.Duration { return time.Microsecond }}),
	})
	c.Use(cache)
	t.Cleanup(func() {
		c.Disconnect()
		c.daemons.Wait()
		c.Close()
		cache.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// ServeHTTP is the origin.
func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	token, corrupt := c.token, c.corrupt
	c.mu.Unlock()
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		w.Header().Set("Www-Authenticate", `Basic realm="the test"`)
		w.Header().Set("X-Private", "not to be passed on")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	content := c.content
	if corrupt {
		content = append([]byte("other"), content[5:]...)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

func (c *cluster) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *cluster) source() *apiv1.Source {
	return &apiv1.Source{TaskId: string(c.id), Url: c.origin.URL + "/v2/repo/blobs/x"}
}

func (c *cluster) interest(request uint64) *apiv1.PeerMessage {
	return interest(&apiv1.Interest{Request: request, Source: c.source(), Whole: true})
}

func interest(m *apiv1.Interest) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Interest{Interest: m}}
}

func (c *cluster) held(set task.Set) *apiv1.PeerMessage {
	return held(&apiv1.Held{TaskId: string(c.id), Table: wire.FromTable(c.table), Pieces: set.Bytes(), Complete: set.Len() == c.table.Count()})
}

func held(m *apiv1.Held) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Held{Held: m}}
}

func (c *cluster) finished(pieces ...int) *apiv1.PeerMessage {
	m := &apiv1.Finished{TaskId: string(c.id)}
	for _, i := range pieces {
		m.Pieces = append(m.Pieces, uint32(i))
	}
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Finished{Finished: m}}
}

func (c *cluster) badPiece(parent string) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_BadPiece{BadPiece: &apiv1.BadPiece{TaskId: string(c.id), Parent: parent}}}
}

func (c *cluster) leaveTask() *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Leave{Leave: &apiv1.Leave{TaskId: string(c.id)}}}
}

// stream is the tracker's end of an in-memory stream.
type stream struct {
	grpc.ServerStream
	ctx context.Context
	in  chan *apiv1.PeerMessage
	out func(*apiv1.SupernodeMessage)
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Recv() (*apiv1.PeerMessage, error) {
	select {
	case m := <-s.in:
		return m, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *stream) Send(m *apiv1.SupernodeMessage) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	s.out(m)
	return nil
}

// daemon is a node at the other end of a stream.
type daemon struct {
	c    *cluster
	name string
	*stream
	hangUp context.CancelFunc
	done   chan struct{} // closed when the stream has ended
	err    error         // why

	mu       sync.Mutex
	received []*apiv1.SupernodeMessage
}

// dial opens a stream and sends the given messages.
func (c *cluster) dial(first ...*apiv1.PeerMessage) *daemon {
	ctx := grpcpeer.NewContext(context.Background(), &grpcpeer.Peer{
		Addr:      &net.TCPAddr{IP: net.IPv4(198, 51, 100, 7), Port: 4711},
		LocalAddr: &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 8002},
	})
	d := &daemon{c: c, done: make(chan struct{})}
	ctx, d.hangUp = context.WithCancel(ctx)
	d.stream = &stream{ctx: ctx, in: make(chan *apiv1.PeerMessage), out: func(m *apiv1.SupernodeMessage) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.received = append(d.received, m)
	}}
	c.daemons.Go(func() {
		defer d.hangUp() // as gRPC does when a handler returns
		defer close(d.done)
		d.err = c.Connect(d.stream)
	})
	d.send(first...)
	return d
}

func hello(h *apiv1.Hello) *apiv1.PeerMessage {
	return &apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Hello{Hello: h}}
}

// join connects a daemon and waits until it is welcome.
func (c *cluster) join(name string, more ...*apiv1.PeerMessage) *daemon {
	c.t.Helper()
	return c.joinAs(&apiv1.Hello{Name: name, PeerAddress: "198.51.100.1:65002"}, more...)
}

func (c *cluster) joinAs(h *apiv1.Hello, more ...*apiv1.PeerMessage) *daemon {
	c.t.Helper()
	d := c.dial(hello(h))
	d.name = h.Name
	d.wait("Welcome", func(m *apiv1.SupernodeMessage) bool { return m.GetWelcome() != nil })
	d.send(more...)
	return d
}

// send gives messages to the tracker, in order; those before the last have been
// handled when it returns.
func (d *daemon) send(messages ...*apiv1.PeerMessage) {
	for _, m := range messages {
		select {
		case d.in <- m:
		case <-d.ctx.Done():
		}
	}
}

// leave ends the stream and waits for the tracker to notice.
func (d *daemon) leave() {
	d.hangUp()
	<-d.done
}

func (d *daemon) messages() []*apiv1.SupernodeMessage {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.received)
}

// wait returns the latest message that fits, when there is one.
func (d *daemon) wait(what string, fits func(*apiv1.SupernodeMessage) bool) *apiv1.SupernodeMessage {
	d.c.t.Helper()
	var found *apiv1.SupernodeMessage
	testenv.Eventually(d.c.t, func() bool {
		for _, m := range slices.Backward(d.messages()) {
			if fits(m) {
				found = m
				return true
			}
		}
		return false
	}, d.name+" receives "+what)
	return found
}

func (d *daemon) waitInfo(request uint64) *apiv1.TaskInfo {
	d.c.t.Helper()
	return d.wait("TaskInfo", func(m *apiv1.SupernodeMessage) bool {
		return m.GetTaskInfo() != nil && m.GetTaskInfo().Request == request
	}).GetTaskInfo()
}

func (d *daemon) waitFailure(request uint64) *apiv1.Failure {
	d.c.t.Helper()
	return d.wait("Failure", func(m *apiv1.SupernodeMessage) bool {
		return m.GetFailure() != nil && m.GetFailure().Request == request
	}).GetFailure()
}

// parents returns the names in the latest list of parents.
func (d *daemon) parents() []string {
	for _, m := range slices.Backward(d.messages()) {
		if list := m.GetParents(); list != nil {
			var names []string
			for _, p := range list.Parents {
				names = append(names, p.Name)
			}
			return names
		}
	}
	return nil
}

func (d *daemon) waitParents(want ...string) {
	d.c.t.Helper()
	slices.Sort(want)
	testenv.Eventually(d.c.t, func() bool { return slices.Equal(d.parents(), want) }, d.name+" has the parents it should")
}

// digests returns what the daemon was told of pieces.
func (d *daemon) digests() map[int]task.Digest {
	got := map[int]task.Digest{}
	for _, m := range d.messages() {
		if m.GetDigests() == nil {
			continue
		}
		first, list, err := wire.Digests(m.GetDigests(), d.c.table.Count())
		if err != nil {
			d.c.t.Error(err)
		}
		for i, x := range list {
			got[first+i] = x
		}
	}
	return got
}

func (d *daemon) waitDigests() {
	d.c.t.Helper()
	testenv.Eventually(d.c.t, func() bool { return len(d.digests()) == d.c.table.Count() }, d.name+" knows all digests")
}

// waitEnd returns why the stream ended.
func (d *daemon) waitEnd() error {
	d.c.t.Helper()
	select {
	case <-d.done:
		return d.err
	case <-time.After(30 * time.Second):
		d.c.t.Fatal("the stream does not end")
		return errors.New("unreachable")
	}
}

// barrier waits until the tracker has handled what d sent before.
func (d *daemon) barrier() {
	d.send(&apiv1.PeerMessage{}, &apiv1.PeerMessage{})
}
