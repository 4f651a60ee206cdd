package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/supernode"
)

func TestLyingParentIsQuarantinedAndNoBadByteIsServed(t *testing.T) {
	c := newCluster(t, options{nodes: 3})
	c.ready()
	data := registrytest.Random(8<<20, 11)
	path, _ := c.blob(data)
	liar := c.join("liar", registrytest.Digest(data), int64(len(data)), zeros)
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name, a, data)
	}
	if liar.asked.Load() == 0 {
		t.Error("nobody asked the lying peer: the test shows nothing")
	}
	testenv.Eventually(t, func() bool { return metric(t, c.sc.HTTP, "damselfly_quarantine_total") == 1 }, "the quarantine")
	rejected := 0.0
	for _, n := range c.nodes {
		rejected += metric(t, n.c.HTTP, `damselfly_piece_rejected_total{reason="digest"}`)
	}
	if rejected == 0 {
		t.Error("no node counted a rejected piece")
	}
	asked := liar.asked.Load()
	more := registrytest.Random(4<<20, 12)
	path, _ = c.blob(more)
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name+" afterwards", a, more)
	}
	if n := liar.asked.Load(); n != asked {
		t.Errorf("the lying peer was asked %d times after its quarantine", n-asked)
	}
}

func TestSilentParentDoesNotHoldUpADownload(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	data := registrytest.Random(4<<20, 13)
	path, _ := c.blob(data)
	silent := c.join("silent", registrytest.Digest(data), int64(len(data)), hang)
	mustBe(t, "beside a silent parent", c.nodes[0].get(path), data)
	if silent.asked.Load() == 0 {
		t.Error("nobody asked the silent peer: the test shows nothing")
	}
}

func TestSupernodeKilledInTheMiddle(t *testing.T) {
	c := newCluster(t, options{nodes: 2})
	c.ready()
	data := registrytest.Random(8<<20, 14)
	path, upstream := c.blob(data)
	c.reg.Stall(upstream, 4<<20)
	answers := make(chan []answer, 1)
	go func() { answers <- c.all(path) }()
	testenv.Eventually(t, func() bool {
		for _, n := range c.nodes {
			if metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="peer"}`)+
				metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="supernode"}`) < 1<<20 {
				return false
			}
		}
		return true
	}, "the nodes to be in the middle")
	c.super.down()
	c.reg.Release(upstream)
	for i, a := range <-answers {
		mustBe(t, c.nodes[i].name, a, data)
	}
	c.super.up(c.sc.HTTP)
	testenv.Eventually(t, func() bool { return len(c.holders(registrytest.Digest(data))) == 2 }, "the new supernode to know the holders")
	// What it knows is of use.
	requests := len(c.reg.Hits(http.MethodGet, upstream))
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name+" again", a, data)
	}
	if n := len(c.reg.Hits(http.MethodGet, upstream)); n != requests {
		t.Errorf("%d more requests to the origin", n-requests)
	}
}

func TestDaemonStoppedInTheMiddleContinuesFromItsPieces(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	n := c.nodes[0]
	data := registrytest.Random(8<<20, 15)
	path, upstream := c.blob(data)
	c.reg.Stall(upstream, 5<<20)
	first := make(chan answer, 1)
	go func() { first <- n.get(path) }()
	received := func() float64 {
		return metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="supernode"}`)
	}
	testenv.Eventually(t, func() bool { return received() >= 4<<20 }, "the node to be in the middle")
	before := received()
	n.down()
	if a := <-first; a.err == nil && a.status == 200 {
		t.Error("a client got a complete body from a daemon that stopped in the middle")
	}
	c.reg.Release(upstream)
	n.up(n.c.HTTP)
	c.ready()
	mustBe(t, "after the restart", n.get(path), data)
	if after := received(); before+after > float64(len(data))*1.02 {
		t.Errorf("received %.0f bytes before the stop and %.0f after it, of %d", before, after, len(data))
	}
	if sent := c.reg.Sent(upstream); sent > int64(len(data))*102/100 {
		t.Errorf("the origin sent %d bytes for %d", sent, len(data))
	}
}

func TestDamageOnDiskIsFoundAndFetchedAgain(t *testing.T) {
	c := newCluster(t, options{nodes: 2})
	c.ready()
	data := registrytest.Random(4<<20, 16)
	path, _ := c.blob(data)
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name, a, data)
	}
	n := c.nodes[0]
	files, err := filepath.Glob(filepath.Join(n.c.DataDir, "cache", "tasks", "*", "*", "*", "data"))
	if err != nil || len(files) != 1 {
		t.Fatalf("data files %v, error %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, 4<<20 - 4} {
		if _, err := f.WriteAt([]byte("????"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustBe(t, "from a damaged file", n.get(path), data)
	if got := metric(t, n.c.HTTP, `damselfly_piece_rejected_total{reason="damaged"}`); got < 3 {
		t.Errorf("%v damaged pieces were counted, want 3", got)
	}
}

func TestClientThatLeavesAndComesBack(t *testing.T) {
	c := newCluster(t, options{nodes: 1, node: func(_ int, c *dfdaemon.Config) { c.Linger = time.Hour }})
	c.ready()
	n := c.nodes[0]
	data := registrytest.Random(4<<20, 17)
	path, upstream := c.blob(data)
	c.reg.Stall(upstream, 2<<20)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.c.Mirror+path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if resp, err := client.Do(req); err == nil {
			_, _ = resp.Body.Read(make([]byte, 1))
			<-ctx.Done()
			_ = resp.Body.Close()
		}
	}()
	testenv.Eventually(t, func() bool { return metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="supernode"}`) > 0 }, "the first pieces")
	cancel()
	<-left
	c.reg.Release(upstream)
	// The download goes on without a client.
	testenv.Eventually(t, func() bool {
		return metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="supernode"}`) == float64(len(data))
	}, "the rest to come by itself")
	mustBe(t, "when it is back", n.get(path), data)
	if sent := c.reg.Sent(upstream); sent > int64(len(data))*102/100 {
		t.Errorf("the origin sent %d bytes for %d", sent, len(data))
	}
}

func TestRegistryThatStallsIsAskedAgain(t *testing.T) {
	c := newCluster(t, options{nodes: 1, super: func(c *supernode.Config) { c.OriginTimeout = 200 * time.Millisecond }})
	c.ready()
	data := registrytest.Random(4<<20, 18)
	path, upstream := c.blob(data)
	c.reg.Stall(upstream, 1<<20)
	var pull sync.WaitGroup
	var a answer
	pull.Go(func() { a = c.nodes[0].get(path) })
	testenv.Eventually(t, func() bool { return len(c.reg.Hits(http.MethodGet, upstream)) >= 2 }, "another attempt")
	c.reg.Release(upstream)
	pull.Wait()
	mustBe(t, "from a registry that stalled", a, data)
}

func TestFullDiskIsToldToTheClient(t *testing.T) {
	c := newCluster(t, options{nodes: 2, node: func(i int, c *dfdaemon.Config) {
		if i == 0 {
			c.CacheSize = 1 << 20
		}
	}})
	c.ready()
	data := registrytest.Random(4<<20, 19)
	path, _ := c.blob(data)
	a := c.nodes[0].get(path)
	if a.err == nil && a.status == 200 {
		t.Errorf("%d bytes as a complete body from a full store", len(a.body))
	}
	testenv.Eventually(t, c.log.contains("piece store is full"), "the reason in the log")
	mustBe(t, "another node", c.nodes[1].get(path), data)
}
