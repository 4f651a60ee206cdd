// Package enginetest makes engines for tests of what stands around them: with
// a link to a supernode that the test controls, in temporary directories.
package enginetest

import (
	"sync"
	"testing"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// Supernode is a link to a supernode. It implements engine.Supernode.
type Supernode struct {
	tried chan struct{}

	mu    sync.Mutex
	up    bool
	since time.Time
	sent  []*apiv1.PeerMessage
}

// NewSupernode returns a link that has been tried, and is up or not.
func NewSupernode(up bool) *Supernode {
	s := &Supernode{tried: make(chan struct{}), up: up, since: time.Now().Add(-time.Hour)}
	close(s.tried)
	return s
}

// Send keeps m while the link is up.
func (s *Supernode) Send(m *apiv1.PeerMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up {
		s.sent = append(s.sent, m)
	}
}

// Connected reports what Set was told last.
func (s *Supernode) Connected() (bool, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up, s.since
}

// Tried is closed.
func (s *Supernode) Tried() <-chan struct{} { return s.tried }

// Set makes the link up or down, since long ago.
func (s *Supernode) Set(up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = up
}

// Sent returns what was sent so far.
func (s *Supernode) Sent() []*apiv1.PeerMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*apiv1.PeerMessage(nil), s.sent...)
}

// Interests returns the interests that were sent so far.
func (s *Supernode) Interests() []*apiv1.Interest {
	var out []*apiv1.Interest
	for _, m := range s.Sent() {
		if i := m.GetInterest(); i != nil {
			out = append(out, i)
		}
	}
	return out
}

// Node is an engine with its store.
type Node struct {
	*engine.Engine
	Store     *piecestore.Store
	Supernode *Supernode
	Origin    *origin.Client
	Dir       string // of the store

	mu       sync.Mutex
	rejected map[string]int
}

// Options changes what New makes.
type Options struct {
	// Dir of the store; default: a temporary one.
	Dir string
	// Up: the supernode is connected.
	Up     bool
	Engine func(*engine.Options)
	Store  func(*piecestore.Options)
	Origin origin.Options
}

// New returns a node whose parts end with the test. Without further options it
// is alone: no supernode is connected, and it reads from origins.
func New(t testing.TB, o Options) *Node {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Origin.Backoff == nil {
		o.Origin.Backoff = func(int) time.Duration { return time.Millisecond }
	}
	n := &Node{Supernode: NewSupernode(o.Up), Origin: origin.New(o.Origin), Dir: o.Dir, rejected: map[string]int{}}
	so := piecestore.Options{
		Dir:      o.Dir,
		OnRemove: func(id task.ID) { n.Removed(id) },
		OnDamage: func(id task.ID, piece int) { n.Damaged(id, piece) },
	}
	if o.Store != nil {
		o.Store(&so)
	}
	var err error
	if n.Store, err = piecestore.Open(so); err != nil {
		t.Fatal(err)
	}
	client := pieces.NewClient(pieces.ClientOptions{})
	eo := engine.Options{
		Store: n.Store, Supernode: n.Supernode, Pieces: client, Origin: n.Origin,
		Grace: time.Nanosecond, Linger: time.Nanosecond, Rejected: n.reject,
	}
	if o.Engine != nil {
		o.Engine(&eo)
	}
	n.Engine = engine.New(eo)
	t.Cleanup(func() {
		n.Close()
		client.Close()
		if err := n.Store.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return n
}

func (n *Node) reject(reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rejected[reason]++
}

// Rejected returns how often the engine has rejected something for reason.
func (n *Node) Rejected(reason string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rejected[reason]
}
