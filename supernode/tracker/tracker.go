package tracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
	"github.com/damselfly-io/damselfly/scheduler"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// Options configures a Tracker. Name, Address, MasterKey and Pieces are
// required.
type Options struct {
	// Name and Address are this supernode as a parent.
	Name, Address string
	MasterKey     []byte
	// Pieces fetches suspected pieces, to see for itself.
	Pieces *pieces.Client
	Log    *slog.Logger
	Now    func() time.Time

	// MaxParents bounds the parents of one peer in one task; default 24.
	MaxParents int
	// TicketTTL is how long tickets are valid; default 1 h. They are renewed
	// at half of it.
	TicketTTL time.Duration
	// Quarantine is how long a peer that lied is left out; default 10 min.
	Quarantine time.Duration
	// Tick is how often stalled offers and old tickets are looked for; default
	// 250 ms.
	Tick time.Duration
	// OfferStall is how long a peer may make no progress on what it was
	// offered before others are offered the same; default 2 s.
	OfferStall time.Duration
	// TrustKeys are PEM public keys that daemons are told to trust for images.
	TrustKeys [][]byte
	// OnQuarantine is told of every peer that is quarantined.
	OnQuarantine func(name string)
}

// Tracker serves the Connect streams of daemons. It implements cdn.Events.
type Tracker struct {
	o      Options
	cache  *cdn.Cache
	key    ticket.Key      // of this supernode as a parent
	ctx    context.Context //nolint:containedctx // the lifetime of work that outlives one message
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex
	peers      map[string]*peer
	swarms     map[task.ID]*swarm
	reports    []scheduler.Report
	quarantine map[string]time.Time // until when
	commands   map[uint64]*command
	nextID     uint64
}

// New returns a tracker. Use must be called before it serves.
func New(o Options) *Tracker {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxParents == 0 {
		o.MaxParents = 24
	}
	if o.TicketTTL == 0 {
		o.TicketTTL = time.Hour
	}
	if o.Quarantine == 0 {
		o.Quarantine = 10 * time.Minute
	}
	if o.Tick == 0 {
		o.Tick = 250 * time.Millisecond
	}
	if o.OfferStall == 0 {
		o.OfferStall = 2 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Tracker{
		o: o, ctx: ctx, cancel: cancel, peers: map[string]*peer{}, swarms: map[task.ID]*swarm{},
		quarantine: map[string]time.Time{}, commands: map[uint64]*command{},
		key: ticket.ServingKey(o.MasterKey, o.Name),
	}
}

// Use gives the tracker the cache whose events it receives.
func (t *Tracker) Use(c *cdn.Cache) { t.cache = c }

// Disconnect ends all streams and lets no new ones begin.
func (t *Tracker) Disconnect() {
	t.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		p.cancel(errClosing)
	}
}

// Close waits for the tracker's work. No stream may be open any more.
func (t *Tracker) Close() {
	t.Disconnect()
	t.wg.Wait()
}

var (
	errClosing  = status.Error(codes.Unavailable, "supernode is stopping")
	errReplaced = status.Error(codes.Aborted, "another daemon has joined under the same name")
)

// Run looks after stalled offers and expiring tickets until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	tick := time.NewTicker(t.o.Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.tick()
		}
	}
}

func (t *Tracker) tick() {
	now := t.o.Now()
	t.mu.Lock()
	for name, until := range t.quarantine {
		if now.After(until) {
			delete(t.quarantine, name)
			t.forgetReportsLocked(name)
		}
	}
	swarms := make([]*swarm, 0, len(t.swarms))
	for _, s := range t.swarms {
		swarms = append(swarms, s)
	}
	t.mu.Unlock()
	for _, s := range swarms {
		if s.renew(now) {
			s.offer()
		}
	}
}

// Connect serves one daemon's stream.
func (t *Tracker) Connect(stream apiv1.Swarm_ConnectServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	p, err := t.newPeer(stream.Context(), first.GetHello(), cancel)
	if err != nil {
		return err
	}
	if err := t.join(p); err != nil {
		return err
	}
	defer t.leave(p)
	p.out.send(&apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Welcome{Welcome: &apiv1.Welcome{
		ServingKey: p.key, TrustKeys: t.o.TrustKeys,
	}}})

	var receiving sync.WaitGroup
	receiving.Go(func() { cancel(t.receive(ctx, p, stream)) })
	err = t.deliver(ctx, p, stream)
	cancel(err)
	// Recv ends only when this handler returns; the goroutine then has no more
	// than one message in hand.
	t.wg.Go(receiving.Wait)
	return err
}

// maxName bounds names of nodes, zones and racks.
const maxName = 253

func isName(s string) bool {
	return len(s) <= maxName && !strings.ContainsFunc(s, unicode.IsControl)
}

func (t *Tracker) newPeer(ctx context.Context, h *apiv1.Hello, cancel context.CancelCauseFunc) (*peer, error) {
	switch {
	case h == nil:
		return nil, status.Error(codes.InvalidArgument, "the first message must be Hello")
	case h.Name == "" || !isName(h.Name) || !isName(h.Zone) || !isName(h.Rack) || !isName(h.Version):
		return nil, status.Errorf(codes.InvalidArgument, "Hello: name, zone, rack and version may have %d bytes without control characters, and name must not be empty", maxName)
	case h.Name == t.o.Name:
		return nil, status.Errorf(codes.InvalidArgument, "Hello: %q is the supernode's own name; set --name", h.Name)
	}
	address, err := reachable(ctx, h.PeerAddress)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "Hello: peer address %q: %v", h.PeerAddress, err)
	}
	return &peer{
		name: h.Name, zone: h.Zone, rack: h.Rack, address: address, version: h.Version,
		seed: seedAddress(ctx, t.o.Address), key: ticket.ServingKey(t.o.MasterKey, h.Name), cancel: cancel, out: newOutbox(cancel),
		asking: semaphore.NewWeighted(maxAsking), accusing: semaphore.NewWeighted(maxAccusing),
	}, nil
}

// seedAddress is where a daemon fetches pieces from the supernode: address, or,
// if that names no host, the one at which the daemon has reached the supernode.
func seedAddress(ctx context.Context, address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || (host != "" && !net.ParseIP(host).IsUnspecified()) {
		return address
	}
	if from, ok := grpcpeer.FromContext(ctx); ok && from.LocalAddr != nil {
		if local, _, err := net.SplitHostPort(from.LocalAddr.String()); err == nil {
			return net.JoinHostPort(local, port)
		}
	}
	return address
}

// reachable fills in the host of an address that names only a port.
func reachable(ctx context.Context, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	// The address becomes part of URLs that other peers ask for.
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strings.ContainsAny(host, "/?#@\\ ") {
		return "", errors.New("want HOST:PORT")
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return address, nil
	}
	from, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return "", errors.New("it names no host, and the stream's is unknown")
	}
	host, _, err = net.SplitHostPort(from.Addr.String())
	if err != nil {
		return "", fmt.Errorf("it names no host, and the stream comes from %s", from.Addr)
	}
	return net.JoinHostPort(host, port), nil
}

// join makes p a member of the cluster.
func (t *Tracker) join(p *peer) error {
	var left []*command
	defer func() { gone(left, p.name) }()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return errClosing
	}
	if old, ok := t.peers[p.name]; ok {
		old.cancel(errReplaced)
		left = t.removeLocked(old)
		t.o.Log.Info("a node has connected again", "node", p.name, "address", p.address)
	} else {
		t.o.Log.Info("a node has joined", "node", p.name, "zone", p.zone, "address", p.address, "version", p.version)
	}
	t.peers[p.name] = p
	return nil
}

// leave removes p if it was not replaced.
func (t *Tracker) leave(p *peer) {
	var left []*command
	defer func() { gone(left, p.name) }()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.peers[p.name] == p {
		left = t.removeLocked(p)
		t.o.Log.Info("a node has left", "node", p.name)
	}
}

// removeLocked takes p out of everything and returns the commands that are to
// be told, once t.mu is free.
func (t *Tracker) removeLocked(p *peer) []*command {
	delete(t.peers, p.name)
	for id, s := range t.swarms {
		if s.remove(p) {
			delete(t.swarms, id)
		}
	}
	return slices.Collect(maps.Values(t.commands))
}

// gone tells commands that a peer has left.
func gone(commands []*command, peer string) {
	for _, c := range commands {
		c.gone(peer)
	}
}

// PeerInfo describes one connected daemon.
type PeerInfo struct {
	Name        string `json:"name"`
	Zone        string `json:"zone,omitempty"`
	Rack        string `json:"rack,omitempty"`
	Address     string `json:"address"`
	Version     string `json:"version,omitempty"`
	Tasks       int    `json:"tasks"`
	Quarantined bool   `json:"quarantined"`
}

// Peers lists the connected daemons by name.
func (t *Tracker) Peers() []PeerInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	tasks := map[string]int{}
	for _, s := range t.swarms {
		s.count(tasks)
	}
	infos := make([]PeerInfo, 0, len(t.peers))
	for _, p := range t.peers {
		_, bad := t.quarantine[p.name]
		infos = append(infos, PeerInfo{
			Name: p.name, Zone: p.zone, Rack: p.rack, Address: p.address, Version: p.version,
			Tasks: tasks[p.name], Quarantined: bad,
		})
	}
	sort.Slice(infos, func(i, j int) bool { return infos[i].Name < infos[j].Name })
	return infos
}
