package pieces_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
)

const (
	pieceSize = 64 << 10
	parent    = "parent"
	holder    = "holder"
)

var (
	master = []byte("0123456789abcdef0123456789abcdef")
	key    = ticket.ServingKey(master, parent)
)

// catalog offers what it is told to.
type catalog struct {
	mu    sync.Mutex
	ready task.Set
	grown chan struct{} // closed when ready has grown
	feeds map[*feed]struct{}
	unfed bool // no feeds
}

type feed struct {
	c       *catalog
	holder  string
	changed chan struct{}
}

func newCatalog(n int) *catalog {
	return &catalog{ready: task.NewSet(n), grown: make(chan struct{}), feeds: map[*feed]struct{}{}}
}

func (c *catalog) offer(first, end int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ready.AddRange(first, end)
	close(c.grown)
	c.grown = make(chan struct{})
	for f := range c.feeds {
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
}

// end ends all feeds.
func (c *catalog) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.feeds {
		close(f.changed)
		delete(c.feeds, f)
	}
}

func (c *catalog) open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.feeds)
}

func (c *catalog) Feed(_ task.ID, holder string) (pieces.Feed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unfed {
		return nil, pieces.ErrNotHeld
	}
	f := &feed{c: c, holder: holder, changed: make(chan struct{}, 1)}
	c.feeds[f] = struct{}{}
	return f, nil
}

func (c *catalog) Ready(ctx context.Context, _ task.ID, i int) error {
	for {
		c.mu.Lock()
		ok, grown := c.ready.Has(i), c.grown
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return pieces.ErrNotHeld
		}
	}
}

func (f *feed) Set() task.Set {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return f.c.ready.Clone()
}
func (f *feed) Changed() <-chan struct{} { return f.changed }
func (f *feed) Close() {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	delete(f.c.feeds, f)
}

// site is a serving peer with one task of which all pieces are in the store.
type site struct {
	*httptest.Server
	content []byte
	id      task.ID
	table   task.Table
	dir     string
	store   *piecestore.Store
	catalog *catalog
	client  *pieces.Client
}

func newSite(t *testing.T, count int, configure func(*pieces.ServerOptions)) *site {
	t.Helper()
	s := &site{content: make([]byte, count*pieceSize-1), dir: t.TempDir(), catalog: newCatalog(count)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(s.content)
	s.id = task.BlobID(sha256.Sum256(s.content))
	s.table = task.Table{Length: int64(len(s.content)), PieceSize: pieceSize}
	var err error
	if s.store, err = piecestore.Open(piecestore.Options{Dir: s.dir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() })
	st, err := s.store.Create(s.id, s.table, "")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Release()
	for i := range count {
		if _, err := st.WritePiece(t.Context(), i, nil, bytes.NewReader(s.piece(i))); err != nil {
			t.Fatal(err)
		}
	}
	o := pieces.ServerOptions{Name: parent, Key: func() ticket.Key { return key }, Store: s.store, Catalog: s.catalog}
	if configure != nil {
		configure(&o)
	}
	s.Server = httptest.NewServer(pieces.NewServer(o))
	t.Cleanup(s.Close)
	s.client = pieces.NewClient(pieces.ClientOptions{})
	t.Cleanup(s.client.Close)
	return s
}

func (s *site) piece(i int) []byte {
	off, n := s.table.Piece(i)
	return s.content[off : off+n]
}

func (s *site) parent() pieces.Parent {
	return pieces.Parent{Address: s.Listener.Addr().String(), Ticket: issue(s.id, time.Now().Add(time.Hour))}
}

func issue(id task.ID, until time.Time) string {
	return key.Issue(ticket.Ticket{Task: id, Parent: parent, Holder: holder, Expires: until})
}

// fetch returns piece i as the parent at p sends it.
func (s *site) fetch(t *testing.T, p pieces.Parent, i int, wait time.Duration) ([]byte, error) {
	t.Helper()
	_, n := s.table.Piece(i)
	body, err := s.client.Piece(t.Context(), p, s.id, i, n, pieces.Demand, wait)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func TestPiece(t *testing.T) {
	var sent atomic.Int64
	s := newSite(t, 3, func(o *pieces.ServerOptions) { o.Sent = func(n int64) { sent.Add(n) } })
	s.catalog.offer(0, 3)
	for i := range 3 {
		got, err := s.fetch(t, s.parent(), i, 0)
		if err != nil || !bytes.Equal(got, s.piece(i)) {
			t.Errorf("piece %d: %d bytes, %v", i, len(got), err)
		}
	}
	s.Close() // waits for handlers
	if sent.Load() != int64(len(s.content)) {
		t.Errorf("told of %d bytes sent, want %d", sent.Load(), len(s.content))
	}
}

func TestPieceNotOffered(t *testing.T) {
	s := newSite(t, 2, nil)
	s.catalog.offer(0, 1)
	if _, err := s.fetch(t, s.parent(), 1, 0); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("a piece that is held and not offered: %v, want ErrNotHeld", err)
	}
	if _, err := s.fetch(t, s.parent(), 1, time.Millisecond); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("after waiting: %v, want ErrNotHeld", err)
	}
}

// What the catalog allows and the store does not have is not there.
func TestPieceNotInStore(t *testing.T) {
	s := newSite(t, 2, nil)
	s.catalog.offer(0, 2)
	other := task.URLID("http://other", "", "", 1)
	_, err := s.client.Piece(t.Context(), pieces.Parent{Address: s.parent().Address, Ticket: issue(other, time.Now().Add(time.Hour))},
		other, 0, 1, pieces.Demand, 0)
	if !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("unknown task: %v, want ErrNotHeld", err)
	}
	st, _ := s.store.Get(s.id)
	defer st.Release()
	if err := st.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.fetch(t, s.parent(), 0, 0); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("piece that has gone: %v, want ErrNotHeld", err)
	}
}

func TestWaitForPiece(t *testing.T) {
	s := newSite(t, 2, nil)
	got := make(chan error, 1)
	go func() {
		b, err := s.fetch(t, s.parent(), 1, time.Minute)
		if err == nil && !bytes.Equal(b, s.piece(1)) {
			err = errors.New("wrong bytes")
		}
		got <- err
	}()
	s.catalog.offer(1, 2)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestDamagedPieceIsNotSent(t *testing.T) {
	s := newSite(t, 2, nil)
	s.catalog.offer(0, 2)
	hex := strings.TrimPrefix(string(s.id), "sha256:")
	path := filepath.Join(s.dir, "tasks", "sha256", hex[:2], hex, "data")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 10); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The store tells by the times of the file, whose clock is coarse.
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	if _, err := s.fetch(t, s.parent(), 0, 0); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("damaged piece: %v, want ErrNotHeld", err)
	}
	if got, err := s.fetch(t, s.parent(), 1, 0); err != nil || !bytes.Equal(got, s.piece(1)) {
		t.Errorf("its neighbour: %d bytes, %v", len(got), err)
	}
}

func TestRefusals(t *testing.T) {
	now := time.Now()
	var reasons []error
	var mu sync.Mutex
	s := newSite(t, 1, func(o *pieces.ServerOptions) {
		o.Now = func() time.Time { return now }
		o.Refused = func(err error) { mu.Lock(); reasons = append(reasons, err); mu.Unlock() }
	})
	s.catalog.offer(0, 1)
	other := task.URLID("http://other", "", "", 1)
	good := issue(s.id, now.Add(time.Minute))
	stranger := ticket.Ticket{Task: s.id, Parent: "stranger", Holder: holder, Expires: now.Add(time.Minute)}
	for _, tc := range []struct {
		name, ticket string
		reason       error // nil: not a matter of kinds
	}{
		{"none", "", nil},
		{"malformed", "x", ticket.ErrMalformed},
		{"forged", good[:len(good)-5] + "AAAAA", ticket.ErrForged},
		{"of another parent", ticket.ServingKey(master, "stranger").Issue(stranger), ticket.ErrForged},
		{"for another parent", key.Issue(stranger), ticket.ErrForeign},
		{"for another task", issue(other, now.Add(time.Minute)), ticket.ErrForeign},
		{"expired", issue(s.id, now), ticket.ErrExpired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reasons = nil
			p := pieces.Parent{Address: s.parent().Address, Ticket: tc.ticket}
			if _, err := s.fetch(t, p, 0, 0); !errors.Is(err, pieces.ErrDenied) {
				t.Errorf("piece: %v, want ErrDenied", err)
			}
			err := s.client.Haves(t.Context(), p, s.id, 1, func(int, int) { t.Error("told of pieces") })
			if !errors.Is(err, pieces.ErrDenied) {
				t.Errorf("haves: %v, want ErrDenied", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(reasons) != 2 || (tc.reason != nil && !errors.Is(reasons[0], tc.reason)) {
				t.Errorf("told of %v, want two like %v", reasons, tc.reason)
			}
		})
	}
}

func TestNoKeyRefusesAll(t *testing.T) {
	s := newSite(t, 1, func(o *pieces.ServerOptions) { o.Key = func() ticket.Key { return nil } })
	s.catalog.offer(0, 1)
	if _, err := s.fetch(t, s.parent(), 0, 0); !errors.Is(err, pieces.ErrDenied) {
		t.Errorf("before the supernode was heard of: %v, want ErrDenied", err)
	}
}

func TestBadRequests(t *testing.T) {
	s := newSite(t, 1, nil)
	s.catalog.offer(0, 1)
	base := "/v1/tasks/" + string(s.id)
	for _, tc := range []struct {
		method, path, priority string
		want                   int
	}{
		{"GET", base + "/pieces/0", "", 200},
		{"GET", base + "/pieces/0?wait=1s", "preheat", 200},
		{"GET", "/v1/tasks/sha256:x/pieces/0", "", 400},
		{"GET", "/v1/tasks/..%2f..%2fetc/pieces/0", "", 400},
		{"GET", base + "/pieces/-1", "", 400},
		{"GET", base + "/pieces/x", "", 400},
		{"GET", base + "/pieces/99999999999999999999", "", 400},
		{"GET", base + "/pieces/1", "", 404},
		{"GET", base + "/pieces/4294967296", "", 404},
		{"GET", base + "/pieces/0?wait=x", "", 400},
		{"GET", base + "/pieces/0?wait=-1s", "", 400},
		{"GET", base + "/pieces/0", "urgent", 400},
		{"POST", base + "/pieces/0", "", 405},
		{"GET", "/", "", 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, s.URL+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(pieces.HeaderTicket, s.parent().Ticket)
		if tc.priority != "" {
			req.Header.Set(pieces.HeaderPriority, tc.priority)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s %s (%s): %d, want %d", tc.method, tc.path, tc.priority, resp.StatusCode, tc.want)
		}
	}
}

func TestBusyAndPriorities(t *testing.T) {
	s := newSite(t, 4, func(o *pieces.ServerOptions) { o.Slots, o.MaxWaiting = 1, 1 })
	s.catalog.offer(0, 4)
	// The only slot is taken by an upload that nobody reads: larger than what
	// the sockets hold.
	big := newStalled(t, s)
	defer big.release()
	waiting := make(chan error, 1)
	go func() {
		_, err := s.fetch(t, s.parent(), 1, 0)
		waiting <- err
	}()
	// One of two more is refused at once, whichever comes second.
	second := make(chan error, 1)
	go func() {
		_, err := s.fetch(t, s.parent(), 2, 0)
		second <- err
	}()
	var refused error
	var other chan error
	select {
	case refused = <-waiting:
		other = second
	case refused = <-second:
		other = waiting
	}
	if !errors.Is(refused, pieces.ErrBusy) {
		t.Errorf("beyond the queue: %v, want ErrBusy", refused)
	}
	big.release()
	if err := <-other; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

// stalled is an upload that holds a slot until it is released.
type stalled struct{ release func() }

// newStalled makes a second, large task at s and begins to fetch it.
func newStalled(t *testing.T, s *site) stalled {
	t.Helper()
	const length = 64 << 20
	id := task.URLID("http://large", "", "", length)
	table := task.Table{Length: length, PieceSize: length}
	st, err := s.store.Create(id, table, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.WritePiece(t.Context(), 0, nil, io.LimitReader(zeros{}, length)); err != nil {
		t.Fatal(err)
	}
	st.Release()
	client := pieces.NewClient(pieces.ClientOptions{})
	t.Cleanup(client.Close)
	p := pieces.Parent{Address: s.parent().Address, Ticket: issue(id, time.Now().Add(time.Hour))}
	body, err := client.Piece(t.Context(), p, id, 0, length, pieces.Demand, 0)
	if err != nil {
		t.Fatal(err)
	}
	return stalled{release: sync.OnceFunc(func() { _ = body.Close() })}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRateLimit(t *testing.T) {
	// Two pieces of 64 KiB with a burst of 256 KiB go at once; the limit of one
	// byte a second then stops the holder, but not others.
	s := newSite(t, 8, func(o *pieces.ServerOptions) { o.HolderRate = 1 })
	s.catalog.offer(0, 8)
	for i := range 4 {
		if _, err := s.fetch(t, s.parent(), i, 0); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	limited := make(chan error, 1)
	go func() {
		body, err := s.client.Piece(ctx, s.parent(), s.id, 4, pieceSize, pieces.Demand, 0)
		if err == nil {
			_ = body.Close()
		}
		limited <- err
	}()
	free := key.Issue(ticket.Ticket{Task: s.id, Parent: parent, Holder: "another", Expires: time.Now().Add(time.Hour)})
	if _, err := s.fetch(t, pieces.Parent{Address: s.parent().Address, Ticket: free}, 5, 0); err != nil {
		t.Errorf("another holder: %v", err)
	}
	select {
	case err := <-limited:
		t.Errorf("beyond the holder's limit: %v at once", err)
	default:
	}
	cancel()
	if err := <-limited; !errors.Is(err, context.Canceled) {
		t.Errorf("after giving up: %v", err)
	}
}
