package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
)

func TestAllPullAtOnceAndTheOriginServesOnce(t *testing.T) {
	c := newCluster(t, options{nodes: 3})
	c.ready()
	data := registrytest.Random(8<<20, 1)
	path, upstream := c.blob(data)
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name, a, data)
	}
	if sent := c.reg.Sent(upstream); sent > int64(len(data))*102/100 {
		t.Errorf("the origin sent %d bytes for %d", sent, len(data))
	}
	seen := map[string]bool{}
	for _, h := range c.reg.Hits(http.MethodGet, upstream) {
		if seen[h.Range] {
			t.Errorf("range %q was asked for twice", h.Range)
		}
		seen[h.Range] = true
	}
	for _, n := range c.nodes {
		if got := metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="origin"}`); got != 0 {
			t.Errorf("%s read %v bytes from the origin itself", n.name, got)
		}
	}
	// From now on the nodes serve it alone.
	requests := len(c.reg.Hits(http.MethodGet, upstream))
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name+" again", a, data)
	}
	if n := len(c.reg.Hits(http.MethodGet, upstream)); n != requests {
		t.Errorf("%d more requests for content that the nodes hold", n-requests)
	}
}

func TestPeersShareMoreThanTheSupernodeSends(t *testing.T) {
	c := newCluster(t, options{nodes: 3})
	c.ready()
	data := registrytest.Random(8<<20, 2)
	path, _ := c.blob(data)
	for i, a := range c.all(path) {
		mustBe(t, c.nodes[i].name, a, data)
	}
	peers := 0.0
	for _, n := range c.nodes {
		peers += metric(t, n.c.HTTP, `damselfly_piece_download_bytes_total{from="peer"}`)
	}
	if peers < float64(len(data)) {
		t.Errorf("peers gave each other %.0f bytes of %d that were needed three times", peers, len(data))
	}
}

// TestParallelRangesJoinOneTask pulls as containerd 2.1 does.
func TestParallelRangesJoinOneTask(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	data := registrytest.Random(8<<20, 3)
	path, upstream := c.blob(data)
	const parts = 8
	part := len(data) / parts
	var ranges sync.WaitGroup
	for i := range parts {
		ranges.Go(func() {
			from, to := i*part, (i+1)*part
			a := c.nodes[0].get(path, "Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
			if a.err != nil || a.status != 206 || !bytes.Equal(a.body, data[from:to]) {
				t.Errorf("range %d: status %d, %d bytes, error %v", i, a.status, len(a.body), a.err)
			}
		})
	}
	ranges.Wait()
	if sent := c.reg.Sent(upstream); sent > int64(len(data))*102/100 {
		t.Errorf("the origin sent %d bytes for %d", sent, len(data))
	}
}

// TestRangesOneAfterAnother begins a range when the download of the one before
// is ending.
func TestRangesOneAfterAnother(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	data := registrytest.Random(4<<20, 4)
	path, _ := c.blob(data)
	const parts = 32
	part := len(data) / parts
	for i := range parts {
		k := i * 7 % parts // not in order
		from, to := k*part, (k+1)*part
		a := c.nodes[0].get(path, "Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
		if a.err != nil || a.status != 206 || !bytes.Equal(a.body, data[from:to]) {
			t.Fatalf("range %d: status %d, %d bytes, error %v", k, a.status, len(a.body), a.err)
		}
	}
	mustBe(t, "the whole at last", c.nodes[0].get(path), data)
}

func TestWrongDigestAtTheOrigin(t *testing.T) {
	c := newCluster(t, options{nodes: 2})
	c.ready()
	for _, size := range []int{1000, 4 << 20} {
		ref := registrytest.Digest(fmt.Appendf(nil, "another %d", size))
		c.reg.BlobAs("org/app", ref, registrytest.Random(size, 5))
		for i, a := range c.all(registrytest.BlobPath("org/app", ref) + ns) {
			if a.err == nil && a.status == http.StatusOK {
				t.Errorf("%s: %d bytes of wrong content were served as a complete body", c.nodes[i].name, len(a.body))
			}
		}
	}
}

func TestPermissionIsCheckedOnEveryNode(t *testing.T) {
	c := newCluster(t, options{nodes: 3})
	c.ready()
	data := registrytest.Random(2<<20, 6)
	d := c.reg.Blob("org/private", data)
	c.reg.Allow("org/private", "Bearer good")
	path := registrytest.BlobPath("org/private", d) + ns
	mustBe(t, "with permission", c.nodes[0].get(path, "Authorization", "Bearer good"), data)
	for _, n := range c.nodes {
		for _, cred := range []string{"Bearer bad", ""} {
			a := n.get(path, "Authorization", cred)
			if a.status != 401 || a.header.Get("Www-Authenticate") != registrytest.Challenge || len(a.body) > 1000 {
				t.Errorf("%s with %q: status %d, %d bytes", n.name, cred, a.status, len(a.body))
			}
		}
	}
	mustBe(t, "another node with permission", c.nodes[1].get(path, "Authorization", "Bearer good"), data)
}
