package tracker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/internal/ticket"
	"github.com/damselfly-io/damselfly/internal/wire"
)

const (
	small = 2<<20 + 77 // 33 pieces
	large = 16 << 20   // 128 pieces
)

func TestInterest(t *testing.T) {
	c := newCluster(t, small, nil)
	a := c.join("a", c.interest(7))
	info := a.waitInfo(7)
	table, err := wire.Table(info.Table)
	if err != nil || !table.Equal(c.table) || info.TaskId != string(c.id) {
		t.Errorf("told %+v, %v", info, err)
	}
	a.waitDigests()
	for i, d := range a.digests() {
		off, n := c.table.Piece(i)
		if d != sha256.Sum256(c.content[off:off+n]) {
			t.Errorf("wrong digest of piece %d", i)
		}
	}
	b := c.join("b", c.interest(8))
	b.waitDigests()
	a.waitParents("b", self)
	b.waitParents("a", self)
	if info := c.Peers(); info[0].Tasks != 1 {
		t.Errorf("peers %+v", info)
	}
}

func TestTicketsVerify(t *testing.T) {
	c := newCluster(t, small, nil)
	a := c.join("a", c.interest(1))
	b := c.join("b", c.interest(1))
	b.waitParents("a", self)
	keyOf := func(d *daemon) ticket.Key {
		return d.wait("Welcome", func(m *apiv1.SupernodeMessage) bool { return m.GetWelcome() != nil }).GetWelcome().ServingKey
	}
	list := b.wait("Parents", func(m *apiv1.SupernodeMessage) bool { return len(m.GetParents().GetParents()) == 2 }).GetParents()
	for _, p := range list.Parents {
		key := ticket.ServingKey(master, self)
		if p.Name == "a" {
			key = keyOf(a)
		}
		got, err := key.Verify(p.Ticket, c.id, p.Name, time.Now())
		if err != nil || got.Holder != "b" {
			t.Errorf("ticket for %s: %+v, %v", p.Name, got, err)
		}
		if _, err := keyOf(b).Verify(p.Ticket, c.id, p.Name, time.Now()); err == nil {
			t.Errorf("ticket for %s verifies under the holder's key", p.Name)
		}
		if p.Seed != (p.Name == self) || p.Foreign {
			t.Errorf("parent %+v", p)
		}
	}
	// Renewed well before they end.
	before := len(b.messages())
	c.now.Add(int64(31 * time.Minute))
	c.tick()
	b.wait("new tickets", func(m *apiv1.SupernodeMessage) bool {
		return m.GetParents() != nil && slices.Index(b.messages(), m) >= before
	})
}

func TestFailures(t *testing.T) {
	c := newCluster(t, small, nil)
	c.set(func() { c.token = "good" })
	d := c.join("a")
	with := func(request uint64, change func(*apiv1.Interest)) *apiv1.Failure {
		m := &apiv1.Interest{Request: request, Source: c.source(), Whole: true}
		change(m)
		d.send(interest(m))
		return d.waitFailure(request)
	}
	f := with(1, func(*apiv1.Interest) {})
	if f.HttpStatus != 401 || !f.Permanent || f.TaskId != string(c.id) || len(f.Headers) != 1 ||
		f.Headers[0].Name != "Www-Authenticate" || !strings.Contains(f.Headers[0].Value, "the test") {
		t.Errorf("without a credential: %+v", f)
	}
	f = with(2, func(m *apiv1.Interest) { m.Source.Credential = &apiv1.Credential{Authorization: "Bearer bad-token"} })
	if f.HttpStatus != 401 || strings.Contains(f.String(), "bad-token") {
		t.Errorf("with a wrong credential: %+v", f)
	}
	if f = with(3, func(m *apiv1.Interest) { m.Source.Url = "http://127.0.0.1:1/x" }); f.HttpStatus != 0 || f.Permanent || f.Message == "" {
		t.Errorf("unreachable: %+v", f)
	}
	for i, change := range []func(*apiv1.Interest){
		func(m *apiv1.Interest) { m.Source = nil },
		func(m *apiv1.Interest) { m.Source.Url = "ftp://x" },
		func(m *apiv1.Interest) { m.Source.TaskId = "sha256:x" },
		func(m *apiv1.Interest) { m.Source.Table = &apiv1.Table{Length: -1} },
		func(m *apiv1.Interest) { m.Ranges = make([]*apiv1.Range, 100_000); fillRanges(m.Ranges) },
	} {
		if f = with(uint64(10+i), change); f.HttpStatus != 0 || f.Message == "" || !f.Permanent {
			t.Errorf("malformed %d: %+v", i, f)
		}
	}
	if n := len(c.swarms); n != 0 {
		t.Errorf("%d swarms were made", n)
	}
	d.send(interest(&apiv1.Interest{Request: 99, Source: &apiv1.Source{
		TaskId: string(c.id), Url: c.source().Url, Credential: &apiv1.Credential{Authorization: "Bearer good"},
	}}))
	d.waitInfo(99)
}

func fillRanges(list []*apiv1.Range) {
	for i := range list {
		list[i] = &apiv1.Range{Length: 1}
	}
}

func TestMalformedMessagesEndTheStream(t *testing.T) {
	c := newCluster(t, small, nil)
	good := wire.FromTable(c.table)
	for name, m := range map[string]*apiv1.PeerMessage{
		"Held, bad id":      held(&apiv1.Held{TaskId: "x", Table: good, Complete: true}),
		"Held, no table":    held(&apiv1.Held{TaskId: string(c.id), Complete: true}),
		"Held, bad table":   held(&apiv1.Held{TaskId: string(c.id), Table: &apiv1.Table{Length: 5, PieceSize: -1}, Complete: true}),
		"Held, no pieces":   held(&apiv1.Held{TaskId: string(c.id), Table: good}),
		"Held, many pieces": held(&apiv1.Held{TaskId: string(c.id), Table: good, Pieces: slices.Repeat([]byte{0xff}, 8)}),
		"Finished, bad id":  {Kind: &apiv1.PeerMessage_Finished{Finished: &apiv1.Finished{}}},
		"Leave, bad id":     {Kind: &apiv1.PeerMessage_Leave{Leave: &apiv1.Leave{}}},
		"Dropped, bad id":   {Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{}}},
		"Starved, bad id":   {Kind: &apiv1.PeerMessage_Starved{Starved: &apiv1.Starved{}}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.join("a", m).waitEnd(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v, want InvalidArgument", err)
			}
		})
	}
}

// pieces beyond the table must do no harm.
func TestPiecesBeyondTheEnd(t *testing.T) {
	c := newCluster(t, small, nil)
	d := c.join("a", c.interest(1))
	d.waitInfo(1)
	far := []uint32{33, 64, 1 << 20, 1<<32 - 1}
	d.send(
		&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Finished{Finished: &apiv1.Finished{TaskId: string(c.id), Pieces: far}}},
		&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{TaskId: string(c.id), Pieces: far}}},
		&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Starved{Starved: &apiv1.Starved{TaskId: string(c.id), Pieces: far}}},
		&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_BadPiece{BadPiece: &apiv1.BadPiece{TaskId: string(c.id), Piece: far[3], Parent: "a"}}},
	)
	d.barrier()
	if n := c.HeldBytes(c.id, "a"); n != 0 {
		t.Errorf("%d bytes held", n)
	}
	d.send(c.finished(0, 32))
	testenv.Eventually(t, func() bool { _, n := c.table.Piece(32); return c.HeldBytes(c.id, "a") == 64<<10+n }, "pieces 0 and 32 are held")
}

func TestOffersGoOn(t *testing.T) {
	c := newCluster(t, large, nil)
	names := []string{"a", "b"}
	daemons := map[string]*daemon{}
	for _, name := range names {
		daemons[name] = c.join(name, c.interest(1))
		daemons[name].waitInfo(1)
	}
	offered := task.NewSet(c.table.Count())
	feeds := map[string]pieces.Feed{}
	for _, name := range names {
		f, err := c.Feed(c.id, name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		feeds[name] = f
	}
	first := 0
	testenv.Eventually(t, func() bool {
		for name, f := range feeds {
			var got []int
			for i := range f.Set().All() {
				if offered.Has(i) {
					continue
				}
				offered.Add(i)
				got = append(got, i)
			}
			if len(got) > 0 {
				if first == 0 {
					first = len(got)
				}
				daemons[name].send(c.finished(got...))
			}
		}
		return offered.Len() == c.table.Count()
	}, "everything is offered, once what was before is finished")
	a, b := feeds["a"].Set().Len(), feeds["b"].Set().Len()
	if a == 0 || b == 0 {
		t.Errorf("%d and %d pieces were offered: one peer got all", a, b)
	}
	if err := c.Ready(t.Context(), c.id, 0); err != nil {
		t.Errorf("an offered piece is not ready: %v", err)
	}
}

func TestRangesAreOffered(t *testing.T) {
	c := newCluster(t, large, nil)
	d := c.join("a", interest(&apiv1.Interest{Request: 1, Source: c.source(), Ranges: []*apiv1.Range{{Offset: 50 * c.table.PieceSize, Length: 1}, {Offset: -5, Length: 1}, {Offset: 1, Length: -1}}}))
	d.waitInfo(1)
	f, err := c.Feed(c.id, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	testenv.Eventually(t, func() bool { return f.Set().Has(50) }, "the piece asked for is offered")
	if n := f.Set().Len(); n != 1 {
		t.Errorf("%d pieces are offered, want 1", n)
	}
}

func TestNoFeedForStrangers(t *testing.T) {
	c := newCluster(t, small, nil)
	if _, err := c.Feed(c.id, "a"); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("unknown task: %v", err)
	}
	if err := c.Ready(t.Context(), c.id, 0); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("unknown task: %v", err)
	}
	d := c.join("a", c.interest(1))
	d.waitInfo(1)
	if _, err := c.Feed(c.id, "b"); !errors.Is(err, pieces.ErrNotHeld) {
		t.Errorf("a holder that is not in the swarm: %v", err)
	}
}

// The feed of a peer that has gone ends, so that it asks for a new one when it
// is back.
func TestFeedsEndWithTheirMembers(t *testing.T) {
	c := newCluster(t, small, nil)
	for _, end := range []func(*daemon){(*daemon).leave, func(d *daemon) { d.send(c.leaveTask()) }} {
		d := c.join("a", c.interest(1))
		d.waitInfo(1)
		var f pieces.Feed
		testenv.Eventually(t, func() (ok bool) {
			var err error
			f, err = c.Feed(c.id, "a")
			return err == nil
		}, "there is a feed")
		end(d)
		testenv.Eventually(t, func() bool {
			select {
			case _, more := <-f.Changed():
				return !more
			default:
				return false
			}
		}, "the feed ends")
		f.Close()
		d.leave()
	}
}

func TestPeerLeaves(t *testing.T) {
	c := newCluster(t, small, nil)
	a, b, d := c.join("a", c.interest(1)), c.join("b", c.interest(1)), c.join("d", c.interest(1))
	a.waitParents("b", "d", self)
	d.leave()
	a.waitParents("b", self)
	b.waitParents("a", self)
	// Leaving the task keeps what is held known.
	b.send(c.finished(1, 2), c.leaveTask())
	b.barrier()
	if h := c.Holders(c.id); !slices.Equal(h, []string{"b"}) {
		t.Errorf("holders %v, want b", h)
	}
	b.leave()
	a.waitParents(self)
	a.leave()
	if n := len(c.swarms); n != 0 {
		t.Errorf("%d swarms are left of nobody", n)
	}
}

// After Leave a daemon knows no digests any more.
func TestDigestsAreToldAgain(t *testing.T) {
	c := newCluster(t, small, nil)
	d := c.join("a", c.interest(1))
	d.waitDigests()
	d.send(c.finished(0), c.leaveTask())
	d.barrier()
	d.mu.Lock()
	d.received = nil
	d.mu.Unlock()
	d.send(c.interest(2))
	d.waitInfo(2)
	d.waitDigests()
}

func TestHeldIsKnownAtOnce(t *testing.T) {
	c := newCluster(t, small, nil) // as after a restart of the supernode
	all := task.FullSet(c.table.Count())
	some := task.NewSet(c.table.Count())
	some.Add(5)
	a, b := c.join("a", c.held(all)), c.join("b", c.held(some))
	a.barrier()
	b.barrier()
	if h := c.Holders(c.id); !slices.Equal(h, []string{"a", "b"}) {
		t.Errorf("holders %v", h)
	}
	if got, want := c.HeldBytes(c.id, "a"), int64(small); got != want {
		t.Errorf("a holds %d bytes, want %d", got, want)
	}
	if got := c.HeldBytes(c.id, "b"); got != 64<<10 {
		t.Errorf("b holds %d bytes", got)
	}
	d := c.join("d", c.interest(1))
	d.waitParents("a", "b", self)
	// Announcements replace each other, and can be taken back.
	b.send(c.held(task.NewSet(c.table.Count())))
	b.barrier()
	a.send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{TaskId: string(c.id), Pieces: []uint32{0}}}})
	a.barrier()
	if h, n := c.Holders(c.id), c.HeldBytes(c.id, "a"); !slices.Equal(h, []string{"a"}) || n != small-64<<10 {
		t.Errorf("holders %v, a holds %d", h, n)
	}
	a.send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Dropped{Dropped: &apiv1.Dropped{TaskId: string(c.id)}}})
	a.barrier()
	if h := c.Holders(c.id); len(h) != 0 {
		t.Errorf("holders %v, want none", h)
	}
	d.waitParents(self)
}

// A daemon with another idea of the table must not harm the others.
func TestOtherTables(t *testing.T) {
	for _, size := range []int64{small, 16 << 10 * 64, 1 << 10} {
		c := newCluster(t, small, nil)
		other := task.Table{Length: small, PieceSize: size}
		if size < 1<<20 {
			other = task.Table{Length: size, PieceSize: max(size/4000, 1)}
		}
		liar := c.join("liar", held(&apiv1.Held{TaskId: string(c.id), Table: wire.FromTable(other), Complete: true}))
		liar.barrier()
		d := c.join("a", c.interest(1))
		if table, err := wire.Table(d.waitInfo(1).Table); err != nil || !table.Equal(c.table) {
			t.Errorf("told table %+v, %v", table, err)
		}
		d.waitDigests()
		d.waitParents(self)
		liar.send(held(&apiv1.Held{TaskId: string(c.id), Table: wire.FromTable(other), Complete: true}), c.finished(1, 40, 4000))
		liar.send(c.interest(2))
		liar.waitInfo(2)
		liar.waitDigests()
		liar.leave()
		d.leave()
	}
}

func TestAnnouncementsAreBounded(t *testing.T) {
	c := newCluster(t, small, nil)
	d := c.join("a")
	ends := make([]int64, 1<<18)
	for i := range ends {
		ends[i] = int64(i + 1)
	}
	table := &apiv1.Table{Length: 1 << 18, Ends: ends}
	for i := range maxAnnounced>>18 + 5 {
		d.send(held(&apiv1.Held{TaskId: string(task.URLID(fmt.Sprint(i), "", "", 0)), Table: table, Complete: true}))
	}
	d.barrier()
	c.mu.Lock()
	total := 0
	for _, s := range c.swarms {
		total += s.table.Count()
	}
	c.mu.Unlock()
	if total > maxAnnounced {
		t.Errorf("one peer made the tracker keep %d pieces", total)
	}
	if total < maxAnnounced/2 {
		t.Errorf("only %d pieces were taken", total)
	}
	d.leave()
	if n := len(c.swarms); n != 0 {
		t.Errorf("%d swarms are left", n)
	}
}

func TestStarvedGetsMoreParents(t *testing.T) {
	c := newCluster(t, small, func(o *Options) { o.MaxParents = 2 })
	all := task.FullSet(c.table.Count())
	only := task.NewSet(c.table.Count())
	only.Add(9)
	for i := range 6 {
		c.join(fmt.Sprint("holder", i), c.held(all)).barrier()
	}
	d := c.join("a", c.interest(1))
	d.waitInfo(1)
	testenv.Eventually(t, func() bool { return len(d.parents()) > 1 }, "it has parents")
	before := len(d.parents())
	d.send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Starved{Starved: &apiv1.Starved{TaskId: string(c.id), Pieces: []uint32{9}}}})
	testenv.Eventually(t, func() bool { return len(d.parents()) > before }, "it has more parents")
}

func TestRevoked(t *testing.T) {
	c := newCluster(t, small, nil)
	c.set(func() { c.corrupt = true })
	holder := c.join("holder", c.held(task.FullSet(c.table.Count())))
	holder.barrier()
	d := c.join("a", c.interest(1))
	for _, x := range []*daemon{d, holder} {
		m := x.wait("Revoked", func(m *apiv1.SupernodeMessage) bool { return m.GetRevoked() != nil }).GetRevoked()
		if m.TaskId != string(c.id) || m.Reason == "" {
			t.Errorf("told %+v", m)
		}
	}
	if h := c.Holders(c.id); len(h) != 0 {
		t.Errorf("holders %v of what was revoked", h)
	}
	if len(d.digests()) == c.table.Count() {
		t.Error("all pieces were published")
	}
}

func TestOriginFailsLater(t *testing.T) {
	c := newCluster(t, large, nil)
	started := make(chan struct{})
	go func() { <-started; c.set(func() { c.token = "changed" }) }()
	d := c.join("a", c.interest(1))
	close(started)
	// Either the answer itself fails or the fetch does; in the end it is told.
	m := d.wait("Failure", func(m *apiv1.SupernodeMessage) bool {
		return m.GetFailure() != nil || len(d.digests()) == c.table.Count()
	})
	if f := m.GetFailure(); f != nil && f.HttpStatus != http.StatusUnauthorized {
		t.Errorf("told %+v", f)
	}
}

func TestDisconnect(t *testing.T) {
	c := newCluster(t, small, nil)
	d := c.join("a", c.interest(1))
	c.Disconnect()
	if err := d.waitEnd(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v, want Unavailable", err)
	}
	if err := c.dial(hello(&apiv1.Hello{Name: "b", PeerAddress: "a:1"})).waitEnd(); status.Code(err) != codes.Unavailable {
		t.Errorf("a new stream ends with %v, want Unavailable", err)
	}
}

func TestZones(t *testing.T) {
	c := newCluster(t, small, nil)
	at := func(name, zone string) *daemon {
		return c.joinAs(&apiv1.Hello{Name: name, Zone: zone, PeerAddress: "198.51.100.1:1"}, c.interest(1))
	}
	a, b, d := at("a", "east"), at("b", "east"), at("d", "west")
	for _, x := range []*daemon{a, b, d} {
		x.waitInfo(1)
	}
	d.waitParents("a", "b", self)
	seen := map[uint32]bool{}
	for _, x := range []*daemon{a, b} {
		list := x.wait("its share", func(m *apiv1.SupernodeMessage) bool { return m.GetParents().GetShareOf() == 2 }).GetParents()
		seen[list.ShareSlot] = true
	}
	if len(seen) != 2 {
		t.Errorf("shares %v: the two of a zone have the same", seen)
	}
	a.waitParents("b", "d", self)
	list := a.wait("Parents", func(m *apiv1.SupernodeMessage) bool { return len(m.GetParents().GetParents()) == 3 }).GetParents()
	for _, p := range list.Parents {
		if p.Foreign != (p.Name == "d") {
			t.Errorf("parent %+v", p)
		}
	}
}
