package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/internal/enginetest"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/internal/ticket"
	"github.com/damselfly-io/damselfly/internal/wire"
)

// content is a task that a test's supernode knows.
type content struct {
	data  []byte
	id    task.ID
	table task.Table
}

func newContent(size int, seed uint64) content {
	data := registrytest.Random(size, seed)
	return content{data: data, id: task.BlobID(sha256.Sum256(data)), table: task.Uniform(int64(size))}
}

// request asks for all of c, from nowhere.
func (c content) request(authorized bool) engine.Request {
	return engine.Request{Source: wire.Source{ID: c.id, URL: "http://registry.invalid/v2/a/blobs/" + string(c.id)}, Whole: true, Authorized: authorized}
}

// info answers an interest.
func (c content) info(request uint64) *apiv1.SupernodeMessage {
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_TaskInfo{TaskInfo: &apiv1.TaskInfo{
		Request: request, TaskId: string(c.id), Table: wire.FromTable(c.table), ContentType: "application/x-test", Etag: `"e"`,
	}}}
}

// digests publishes all pieces.
func (c content) digests() *apiv1.SupernodeMessage {
	d := &apiv1.Digests{TaskId: string(c.id)}
	for i := range c.table.Count() {
		off, n := c.table.Piece(i)
		sum := sha256.Sum256(c.data[off : off+n])
		d.Digests = append(d.Digests, sum[:]...)
	}
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Digests{Digests: d}}
}

func (c content) parents(list ...*apiv1.Parent) *apiv1.SupernodeMessage {
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Parents{Parents: &apiv1.Parents{TaskId: string(c.id), Parents: list}}}
}

func failure(id task.ID, request uint64, status int32) *apiv1.SupernodeMessage {
	return &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Failure{Failure: &apiv1.Failure{
		TaskId: string(id), Request: request, HttpStatus: status, Message: "the origin says no", Permanent: true,
	}}}
}

// parent is a piece server with a store of its own.
type parent struct {
	*enginetest.Node
	entry *apiv1.Parent
	srv   *httptest.Server
}

// newParent runs a parent that holds c; with lie, bytes that are not c's under
// the same name.
func newParent(t *testing.T, name string, c content, lie bool) *parent {
	t.Helper()
	p := &parent{Node: enginetest.New(t, enginetest.Options{Up: true})}
	st, err := p.Store.Create(c.id, c.table, "")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Release()
	data := c.data
	if lie {
		data = make([]byte, len(c.data))
	}
	for i := range c.table.Count() {
		off, n := c.table.Piece(i)
		sum := task.Digest(sha256.Sum256(data[off : off+n]))
		if _, err := st.WritePiece(t.Context(), i, &sum, bytes.NewReader(data[off:off+n])); err != nil {
			t.Fatal(err)
		}
	}
	key := ticket.Key("serving key of " + name)
	stop := make(chan struct{})
	p.srv = httptest.NewServer(pieces.NewServer(pieces.ServerOptions{
		Name: name, Key: func() ticket.Key { return key }, Store: p.Store, Catalog: p.Engine, Stop: stop,
	}))
	t.Cleanup(func() {
		close(stop)
		p.srv.CloseClientConnections()
		p.srv.Close()
	})
	p.entry = &apiv1.Parent{Name: name, Address: p.srv.Listener.Addr().String(), Ticket: key.Issue(ticket.Ticket{
		Task: c.id, Parent: name, Holder: "me", Expires: time.Now().Add(time.Hour),
	})}
	return p
}

// opened is the outcome of Open.
type opened struct {
	h   *engine.Handle
	err error
}

// open opens in the background.
func open(t *testing.T, n *enginetest.Node, r engine.Request) <-chan opened {
	t.Helper()
	done := make(chan opened, 1)
	go func() {
		h, err := n.Open(context.Background(), r)
		done <- opened{h, err}
	}()
	return done
}

// interest waits until n interests were sent and returns the last.
func interest(t *testing.T, node *enginetest.Node, n int) *apiv1.Interest {
	t.Helper()
	testenv.Eventually(t, func() bool { return len(node.Supernode.Interests()) >= n }, "an interest")
	return node.Supernode.Interests()[n-1]
}

// read copies all of h.
func read(t *testing.T, h *engine.Handle) ([]byte, error) {
	t.Helper()
	var b bytes.Buffer
	n, err := h.Copy(t.Context(), &b, 0, h.Table().Length)
	if n != int64(b.Len()) {
		t.Errorf("Copy says %d bytes, and sent %d", n, b.Len())
	}
	return b.Bytes(), err
}

func newNode(t *testing.T, up bool) *enginetest.Node {
	t.Helper()
	return enginetest.New(t, enginetest.Options{Up: up})
}

// start opens c on the node and lets the supernode answer with digests and
// parents.
func start(t *testing.T, n *enginetest.Node, c content, parents ...*apiv1.Parent) *engine.Handle {
	t.Helper()
	done := open(t, n, c.request(true))
	i := interest(t, n, 1)
	n.Receive(c.info(i.Request))
	n.Receive(c.digests())
	n.Receive(c.parents(parents...))
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	t.Cleanup(o.h.Close)
	return o.h
}

func TestDownloadFromAParent(t *testing.T) {
	c, n := newContent(3<<20, 1), newNode(t, true)
	p := newParent(t, "p1", c, false)
	h := start(t, n, c, p.entry)
	got, err := read(t, h)
	if err != nil || !bytes.Equal(got, c.data) {
		t.Fatalf("%d bytes, error %v", len(got), err)
	}
	if err := h.WaitComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := h.Meta(); m.ContentType != "application/x-test" || m.ETag != `"e"` {
		t.Errorf("meta %+v", m)
	}
	held := 0
	leaves := func() (leaves int, complete bool) {
		held = 0
		for _, m := range n.Supernode.Sent() {
			if f := m.GetFinished(); f != nil {
				held += len(f.Pieces)
				complete = complete || f.Complete
			}
			if m.GetLeave() != nil {
				leaves++
			}
		}
		return leaves, complete
	}
	testenv.Eventually(t, func() bool { n, complete := leaves(); return n == 1 && complete }, "the download to report its end")
	if held != c.table.Count() {
		t.Errorf("%d pieces were reported, want %d", held, c.table.Count())
	}
}

func TestLiarIsReportedAndLeftAlone(t *testing.T) {
	c, n := newContent(3<<20, 2), newNode(t, true)
	liar, honest := newParent(t, "liar", c, true), newParent(t, "honest", c, false)
	h := start(t, n, c, liar.entry)
	testenv.Eventually(t, func() bool { return n.Rejected("digest") > 0 }, "the lie to be noticed")
	n.Receive(c.parents(liar.entry, honest.entry)) // the supernode has not heard yet
	got, err := read(t, h)
	if err != nil || !bytes.Equal(got, c.data) {
		t.Fatalf("%d bytes, error %v", len(got), err)
	}
	reported := false
	for _, m := range n.Supernode.Sent() {
		if b := m.GetBadPiece(); b != nil {
			reported = b.Parent == "liar"
		}
	}
	if !reported {
		t.Error("the liar was not reported")
	}
}

// The supernode publishes the last digest when it has checked the whole.
func TestReaderGetsTheLastPieceOnlyWhenTheSupernodeVouchesForIt(t *testing.T) {
	c, n := newContent(1<<20, 3), newNode(t, true)
	p := newParent(t, "p1", c, false)
	done := open(t, n, c.request(true))
	n.Receive(c.info(interest(t, n, 1).Request))
	most := c.digests()
	d := most.GetDigests()
	d.Digests = d.Digests[:len(d.Digests)-sha256.Size]
	n.Receive(most)
	n.Receive(c.parents(p.entry))
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.h.Close()
	type result struct {
		got []byte
		err error
	}
	reading := make(chan result, 1)
	go func() { got, err := read(t, o.h); reading <- result{got, err} }()
	testenv.Eventually(t, func() bool { p, _ := o.h.Progress(); return p.HeldPieces == c.table.Count()-1 }, "all pieces but the last")
	n.Receive(&apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Revoked{Revoked: &apiv1.Revoked{TaskId: string(c.id), Reason: "wrong digest"}}})
	if r := <-reading; r.err == nil || len(r.got) >= len(c.data) {
		t.Errorf("%d bytes of %d, error %v", len(r.got), len(c.data), r.err)
	}
}

func TestWrongContentNeverBecomesComplete(t *testing.T) {
	c := newContent(1<<20, 3)
	c.id = task.BlobID(sha256.Sum256([]byte("other content"))) // pieces match what is published, the whole does not
	n := newNode(t, true)
	p := newParent(t, "p1", c, false)
	h := start(t, n, c, p.entry)
	if err := h.WaitComplete(t.Context()); err == nil {
		t.Error("wrong content became complete")
	}
	if n.Rejected("digest") == 0 {
		t.Error("the rejection was not counted")
	}
}

func TestRevokedTaskFailsItsReaders(t *testing.T) {
	c, n := newContent(1<<20, 4), newNode(t, true)
	h := start(t, n, c)
	done := make(chan error, 1)
	go func() { _, err := read(t, h); done <- err }()
	n.Receive(&apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Revoked{Revoked: &apiv1.Revoked{TaskId: string(c.id), Reason: "wrong digest"}}})
	if err := <-done; err == nil || !strings.Contains(err.Error(), "wrong digest") {
		t.Errorf("error %v", err)
	}
}

func TestUnsettledRequestOnlyStartsDownloads(t *testing.T) {
	c, n := newContent(1<<20, 5), newNode(t, true)
	first := open(t, n, c.request(false))
	i := interest(t, n, 1)
	if _, err := n.Open(t.Context(), c.request(false)); !errors.Is(err, engine.ErrUnsettled) {
		t.Errorf("a second request without a settled right: %v", err)
	}
	if got := len(n.Supernode.Interests()); got != 1 {
		t.Errorf("%d interests, want that of the first request only", got)
	}
	n.Receive(c.info(i.Request))
	o := <-first
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.h.Close()
	if _, err := n.Open(t.Context(), c.request(false)); !errors.Is(err, engine.ErrUnsettled) {
		t.Errorf("after the first was let in: %v", err)
	}
}

func TestRefusalOfTheFirstLeavesTheOthersAlone(t *testing.T) {
	c, n := newContent(1<<20, 6), newNode(t, true)
	first := open(t, n, c.request(false))
	i1 := interest(t, n, 1)
	second := open(t, n, c.request(true))
	i2 := interest(t, n, 2)
	n.Receive(failure(c.id, i1.Request, http.StatusForbidden))
	var f *engine.Failure
	if o := <-first; !errors.As(o.err, &f) || f.Status != http.StatusForbidden {
		t.Errorf("the first: %v", o.err)
	}
	n.Receive(c.info(i2.Request))
	o := <-second
	if o.err != nil {
		t.Fatalf("the second: %v", o.err)
	}
	o.h.Close()
}

func TestAnswerToOneRequestDoesNotLetInAnother(t *testing.T) {
	c, n := newContent(1<<20, 7), newNode(t, true)
	p := newParent(t, "p1", c, false)
	first := open(t, n, c.request(false)) // never answered
	interest(t, n, 1)
	second := open(t, n, c.request(true))
	i2 := interest(t, n, 2)
	n.Receive(c.info(i2.Request))
	n.Receive(c.digests())
	n.Receive(c.parents(p.entry))
	o := <-second
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.h.Close()
	if err := o.h.WaitComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if o := <-first; !errors.Is(o.err, engine.ErrUnsettled) {
		t.Errorf("the first request, when all was complete: %v", o.err)
	}
}

func TestNextDownloadSpeaksAfterTheLastHasLeft(t *testing.T) {
	c, n := newContent(1<<20, 8), newNode(t, true)
	for round := range 20 {
		done := open(t, n, c.request(true))
		i := interest(t, n, round+1)
		n.Receive(c.info(i.Request))
		o := <-done
		if o.err != nil {
			t.Fatal(o.err)
		}
		o.h.Close()
	}
	testenv.Eventually(t, func() bool { return n.Supernode.Sent()[len(n.Supernode.Sent())-1].GetLeave() != nil }, "the last Leave")
	interested := false
	for k, m := range n.Supernode.Sent() {
		switch {
		case m.GetInterest() != nil:
			interested = true
		case m.GetLeave() != nil && !interested:
			t.Errorf("message %d is a second Leave", k)
		case m.GetLeave() != nil:
			interested = false
		}
	}
}

func TestReconnectAnnouncesWhatIsHeldAndWanted(t *testing.T) {
	c, n := newContent(1<<20, 9), newNode(t, true)
	half := content{data: c.data, id: c.id, table: c.table}
	p := newParent(t, "p1", c, false)
	h := start(t, n, half, p.entry)
	if err := h.WaitComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := newContent(1<<20, 10)
	waiting := open(t, n, other.request(true))
	interest(t, n, 2)
	before := len(n.Supernode.Sent())
	n.Connected()
	testenv.Eventually(t, func() bool { return len(n.Supernode.Interests()) >= 3 }, "the interest again")
	var held, wanted bool
	for _, m := range n.Supernode.Sent()[before:] {
		held = held || m.GetHeld().GetTaskId() == string(c.id) && m.GetHeld().Complete
		wanted = wanted || m.GetInterest().GetSource().GetTaskId() == string(other.id)
	}
	if !held || !wanted {
		t.Errorf("held announced: %v, wanted: %v", held, wanted)
	}
	i := interest(t, n, 3)
	n.Receive(other.info(i.Request))
	o := <-waiting
	if o.err != nil {
		t.Fatal(o.err)
	}
	o.h.Close()
}

func TestStopEndsWhateverWaits(t *testing.T) {
	c, n := newContent(1<<20, 11), newNode(t, true)
	h := start(t, n, c)
	blob := open(t, n, newContent(1000, 12).request(false))
	file := open(t, n, engine.Request{Source: wire.Source{URL: "http://files.invalid/x"}, Whole: true})
	interest(t, n, 3)
	reading := make(chan error, 1)
	go func() { _, err := read(t, h); reading <- err }()
	n.Stop()
	for what, err := range map[string]error{"a blob being opened": (<-blob).err, "a file being opened": (<-file).err, "a reader": <-reading} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := n.Open(t.Context(), c.request(true)); err == nil {
		t.Error("a stopped engine opens")
	}
}

func TestURLGoesToTheOriginWhenTheSupernodeIsLost(t *testing.T) {
	reg, n := registrytest.New(t), newNode(t, true)
	data := registrytest.Random(100_000, 13)
	reg.File("/x", data, `"1"`)
	file := open(t, n, engine.Request{Source: wire.Source{URL: reg.URL + "/x"}, Whole: true})
	interest(t, n, 1)
	n.Supernode.Set(false) // before it has answered
	o := <-file
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.h.Close()
	if got, err := read(t, o.h); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
}

func TestAloneTheFirstRefusalLeavesTheOthersAlone(t *testing.T) {
	reg, n := registrytest.New(t), newNode(t, true)
	data := registrytest.Random(500_000, 14)
	d := reg.Blob("org/private", data)
	reg.Allow("org/private", "Bearer good")
	req := func(token string, authorized bool) engine.Request {
		return engine.Request{
			Source: wire.Source{ID: task.ID(d), URL: reg.URL + registrytest.BlobPath("org/private", d), Credential: origin.Credential{Authorization: token}},
			Whole:  true, Authorized: authorized,
		}
	}
	bad := open(t, n, req("Bearer bad", false))
	interest(t, n, 1)
	good := open(t, n, req("Bearer good", true))
	interest(t, n, 2)
	n.Supernode.Set(false)
	var f *engine.Failure
	if o := <-bad; !errors.As(o.err, &f) || f.Status != http.StatusUnauthorized {
		t.Errorf("without permission: %v", o.err)
	}
	o := <-good
	if o.err != nil {
		t.Fatalf("with permission: %v", o.err)
	}
	defer o.h.Close()
	if got, err := read(t, o.h); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
}

func TestCopyRefusesRangesOutsideTheContent(t *testing.T) {
	c, n := newContent(1000, 15), newNode(t, true)
	h := start(t, n, c)
	for _, r := range [][2]int64{{-1, 1}, {0, 1001}, {1001, 0}, {0, -1}, {1 << 62, 1 << 62}} {
		if _, err := h.Copy(t.Context(), &bytes.Buffer{}, r[0], r[1]); err == nil {
			t.Errorf("Copy(%d, %d) gave no error", r[0], r[1])
		}
	}
}

func TestSecretsOfURLsStayOffTheDisk(t *testing.T) {
	reg, n := registrytest.New(t), newNode(t, false)
	reg.File("/x", registrytest.Random(1000, 16), `"1"`)
	o := <-open(t, n, engine.Request{Source: wire.Source{URL: reg.URL + "/x?X-Amz-Signature=s3cret"}, Whole: true})
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.h.Close()
	var list []piecestore.Info
	testenv.Eventually(t, func() bool { list = n.Store.List(); return len(list) == 1 }, "the task")
	if strings.Contains(list[0].Source, "s3cret") {
		t.Errorf("the store keeps %q", list[0].Source)
	}
}
