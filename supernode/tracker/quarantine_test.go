package tracker

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// barred returns who was quarantined so far.
func (c *cluster) barred() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.quarantined)
}

func (c *cluster) reported() int {
	c.Tracker.mu.Lock()
	defer c.Tracker.mu.Unlock()
	return len(c.reports)
}

func (d *daemon) waitQuarantined(name string) {
	d.c.t.Helper()
	d.wait("Quarantined", func(m *apiv1.SupernodeMessage) bool {
		return slices.Contains(m.GetQuarantined().GetNames(), name)
	})
}

// serve makes a daemon that serves pieces with handle.
func (c *cluster) serve(t *testing.T, name string, handle http.HandlerFunc) *daemon {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	return c.joinAs(&apiv1.Hello{Name: name, PeerAddress: srv.Listener.Addr().String()}, c.interest(1))
}

func TestTwoReporters(t *testing.T) {
	c := newCluster(t, small, nil)
	a, b, bad := c.join("a", c.interest(1)), c.join("b", c.interest(1)), c.join("bad", c.interest(1))
	a.waitParents("b", "bad", self)
	a.send(c.badPiece("bad"), c.badPiece("bad"))
	testenv.Eventually(t, func() bool { return c.reported() == 1 }, "the report counts, once")
	if q := c.barred(); len(q) != 0 {
		t.Fatalf("%v on one peer's word", q)
	}
	b.send(c.badPiece("bad"))
	for _, d := range []*daemon{a, b, bad} {
		d.waitQuarantined("bad")
	}
	a.waitParents("b", self)
	b.waitParents("a", self)
	if p := c.Peers(); !p[2].Quarantined || p[0].Quarantined {
		t.Errorf("peers %+v", p)
	}
	// It may fetch, and is still nobody's parent, also if it asks again or anew.
	bad.waitParents("a", "b", self)
	bad.send(c.leaveTask(), c.interest(2))
	bad.waitInfo(2)
	bad.send(&apiv1.PeerMessage{Kind: &apiv1.PeerMessage_Starved{Starved: &apiv1.Starved{TaskId: string(c.id), Pieces: []uint32{0}}}})
	bad.barrier()
	again := c.join("bad", c.interest(3))
	again.waitInfo(3)
	again.barrier()
	d := c.join("d", c.interest(1))
	d.waitParents("a", "b", self)
	a.waitParents("b", "d", self)
	if q := c.barred(); !slices.Equal(q, []string{"bad"}) {
		t.Errorf("quarantined %v", q)
	}

	c.now.Add(int64(11 * time.Minute))
	c.tick()
	if p := c.Peers(); slices.ContainsFunc(p, func(p PeerInfo) bool { return p.Quarantined }) || c.reported() != 0 {
		t.Errorf("after the quarantine: %+v, %d reports", p, c.reported())
	}
}

func TestProbe(t *testing.T) {
	for _, tc := range []struct {
		name   string
		handle func(c *cluster, w http.ResponseWriter)
		bad    bool
	}{
		{"sends other bytes", func(_ *cluster, w http.ResponseWriter) { _, _ = w.Write(make([]byte, 64<<10)) }, true},
		{"sends the right ones", func(c *cluster, w http.ResponseWriter) { _, _ = w.Write(c.content[:64<<10]) }, false},
		{"sends fewer", func(_ *cluster, w http.ResponseWriter) {
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write(make([]byte, 10))
		}, false},
		{"does not hold it", func(_ *cluster, w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, small, nil)
			c.serve(t, "suspect", func(w http.ResponseWriter, r *http.Request) {
				if want := "/v1/tasks/" + string(c.id) + "/pieces/0"; r.URL.Path != want {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.Header().Set("Content-Length", "65536")
				tc.handle(c, w)
			})
			a := c.join("a", c.interest(1))
			a.waitDigests()
			a.send(c.badPiece("suspect"))
			testenv.Eventually(t, func() bool { return c.reported() == 1 }, "the report is judged")
			if tc.bad {
				a.waitQuarantined("suspect")
			}
			a.barrier()
			if q := c.barred(); (len(q) == 1) != tc.bad {
				t.Errorf("quarantined %v", q)
			}
		})
	}
}

func TestLiarsAreIgnored(t *testing.T) {
	c := newCluster(t, small, nil)
	liar := c.join("liar", c.interest(1))
	friend := c.join("friend", c.interest(1))
	var good []*daemon
	for i := range 5 {
		good = append(good, c.join(fmt.Sprint("good", i), c.interest(1)))
	}
	for i, d := range good {
		liar.send(c.badPiece(d.name))
		testenv.Eventually(t, func() bool { return c.reported() == i+1 }, "the report is judged")
	}
	friend.send(c.badPiece("good4"))
	testenv.Eventually(t, func() bool { return c.reported() == 6 }, "the report is judged")
	if q := c.barred(); len(q) != 0 {
		t.Errorf("one liar and a friend have had %v quarantined", q)
	}
	// About itself, the supernode or nobody is no report at all.
	liar.send(c.badPiece(self), c.badPiece("nobody"), c.badPiece("liar"))
	for range 2000 {
		liar.send(c.badPiece(fmt.Sprint("nobody", 1)))
	}
	liar.barrier()
	good[0].send(c.badPiece("liar"))
	good[1].send(c.badPiece("liar"))
	good[0].waitQuarantined("liar")
	if n := c.reported(); n > 9 {
		t.Errorf("%d reports are kept", n)
	}
}
