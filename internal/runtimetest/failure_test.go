package runtimetest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// forgetful makes the daemons rely on grants alone: what the registry has said
// counts for no time otherwise.
var forgetful = clusterOptions{
	supernode: []string{"--auth-ttl", "1ms", "--tag-ttl", "1ms"},
	node:      []string{"--auth-ttl", "1ms"},
}

func TestRegistryDownAfterPull(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	img, other := newImage(t, "team/granted", 4<<20, 8), newImage(t, "team/other", 1<<20, 9)
	img.push(t, registry.url)
	other.push(t, registry.url)
	node := newCluster(t, registry.url, forgetful).node(t, "node-1")
	runtime := startContainerd(t, "node-1", node.mirror)
	runtime.mustPull(t, img, "")
	runtime.check(t, img)

	registry.kill()
	runtime.forget(t, img)
	runtime.mustPull(t, img, "")
	runtime.check(t, img)

	if out, err := runtime.pull(t, other, ""); err == nil || !strings.Contains(out, "503") {
		t.Errorf("pull of a new image while the registry is down: %v\n%s", err, out)
	}
	// ctr drops the message that came with the status.
	url := fmt.Sprintf("http://%s/v2/%s/manifests/%s?ns=%s", node.mirror, other.repo, other.tag, registryName)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := drain(resp)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, registryName) {
		t.Errorf("%s, %v: %s", resp.Status, err, body)
	}
}

// TestSupernodeKilled kills the supernode in mid-pull. The pull ends without
// it; once it is back it knows who holds what.
func TestSupernodeKilled(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	img := newImage(t, "team/orphan", 16<<20, 10)
	img.push(t, registry.url)
	cluster := newCluster(t, front.URL, clusterOptions{})
	nodes, runtimes := make([]*daemon, 3), make([]*containerd, 3)
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i+1)
		nodes[i] = cluster.node(t, name)
		runtimes[i] = startContainerd(t, name, nodes[i].mirror)
	}

	front.slow(4 << 20)
	end := runtimes[0].beginPull(t, img, "")
	front.awaitSent(t, "/blobs/", 6<<20)
	cluster.supernode.kill()
	if r := <-end; r.err != nil {
		t.Fatalf("pull without the supernode: %v\n%s", r.err, r.out)
	}
	runtimes[0].check(t, img)
	if n := nodes[0].downloaded(t, "origin"); n == 0 {
		t.Error("node-1 did not go to the origin itself: the test shows nothing")
	}
	cluster.restartSupernode(t, img, "node-1")
	front.slow(0)
	front.reset()
	runtimes[1].mustPull(t, img, "")
	runtimes[1].check(t, img)
	// Others take a piece from node-1 once the supernode vouches for it, and it
	// vouches only for what it has fetched: the rest comes once more.
	if n := front.blobBytes(); n >= img.size() {
		t.Errorf("the registry sent %d bytes again of an image of %d", n, img.size())
	}
	if n := nodes[1].downloaded(t, "peer"); n == 0 {
		t.Error("node-2 has nothing from a peer")
	}

	cluster.awaitHeld(t, img, "node-2")
	cluster.supernode.kill()
	cluster.restartSupernode(t, img, "node-1")
	front.reset()
	runtimes[2].mustPull(t, img, "")
	runtimes[2].check(t, img)
	if n := front.blobBytes(); n != 0 {
		t.Errorf("the registry sent %d bytes of blobs that the cluster had", n)
	}
}

// restartSupernode starts a supernode that was killed, fails unless it knows
// soon that a node holds an image, and waits for all nodes.
func (c *cluster) restartSupernode(t *testing.T, img *image, node string) {
	t.Helper()
	const most = 5 * time.Second
	c.run(t, c.supernode)
	back := time.Now()
	c.awaitHeld(t, img, node)
	if d := time.Since(back); d > most {
		t.Errorf("the supernode knew the holders %v after its start, want %v at most", d, most)
	}
	for _, n := range c.nodes {
		n.awaitHTTP(t, "http://"+n.http+"/readyz") // or it would go to the origin itself
	}
}

// TestDfdaemonKilled kills a dfdaemon in mid-pull. Started again on its data, it
// goes on where it was.
func TestDfdaemonKilled(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	img := newImage(t, "team/resumed", 24<<20, 11)
	img.push(t, registry.url)
	cluster := newCluster(t, front.URL, clusterOptions{})
	node := cluster.node(t, "node-1")
	runtime := startContainerd(t, "node-1", node.mirror)

	front.slow(8 << 20)
	end := runtime.beginPull(t, img, "")
	front.awaitSent(t, "/blobs/", 10<<20)
	before := node.downloaded(t, "")
	node.kill()
	if before == 0 {
		t.Error("nothing was downloaded before the kill: the test shows nothing")
	}
	if r := <-end; r.err == nil {
		t.Error("the pull ended before the kill: the test shows nothing")
	}

	cluster.run(t, node)
	front.slow(0)
	runtime.mustPull(t, img, "")
	runtime.check(t, img)
	if got, most := before+node.downloaded(t, ""), img.size()*6/5; got > most {
		t.Errorf("both lives downloaded %d bytes, %d of them in the first, of an image of %d", got, before, img.size())
	}
	front.checkSentOnce(t, img)
}
