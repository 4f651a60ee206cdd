package runtimetest

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// checkRefused pulls with an account that the registry does not let in, and
// fails unless the client is told so and no byte of a blob has moved.
func checkRefused(t *testing.T, front *front, c *containerd, img *image, user string) {
	t.Helper()
	before := front.blobBytes()
	out, err := c.pull(t, img, user)
	if err == nil {
		t.Errorf("account %q could pull:\n%s", user, out)
	}
	if low := strings.ToLower(out); !strings.Contains(low, "401") && !strings.Contains(low, "authoriz") {
		t.Errorf("account %q was refused with an error that does not say why:\n%s", user, out)
	}
	if n := front.blobBytes() - before; n != 0 {
		t.Errorf("the registry sent %d bytes of blobs", n)
	}
}

// checkBlobRefused asks a mirror for a cached blob without an account.
func checkBlobRefused(t *testing.T, node *daemon, img *image) {
	t.Helper()
	for digest, blob := range img.blobs {
		url := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", node.mirror, img.repo, digest, registryName)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := drain(resp)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("Www-Authenticate") == "" || strings.Contains(string(blob), body) {
			t.Errorf("without an account: %s, challenge %q, %d bytes of a blob of %d",
				resp.Status, resp.Header.Get("Www-Authenticate"), len(body), len(blob))
		}
	}
}

func TestPrivateBasicAuth(t *testing.T) {
	needRuntimes(t)
	hash, err := command(t.Context(), testenv.Tool(t, "htpasswd"), "-Bbn", user, password)
	if err != nil {
		t.Fatal(hash, err)
	}
	accounts := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(accounts, []byte(strings.TrimSpace(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	registry := startRegistry(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", accounts))
	front := newFront(t, registry.url)
	img := newImage(t, "team/private", 4<<20, 4)
	img.push(t, strings.Replace(registry.url, "://", "://"+account+"@", 1))
	cluster := newCluster(t, front.URL, clusterOptions{})
	node1, node2 := cluster.node(t, "node-1"), cluster.node(t, "node-2")
	first, second := startContainerd(t, "node-1", node1.mirror), startContainerd(t, "node-2", node2.mirror)

	checkRefused(t, front, first, img, user+":wrong")
	first.mustPull(t, img, account)
	first.check(t, img)
	front.checkSentOnce(t, img)

	front.reset()
	first.forget(t, img)
	checkRefused(t, front, first, img, "")  // its node has the image
	checkRefused(t, front, second, img, "") // the cluster has it
	checkRefused(t, front, second, img, user+":wrong")
	checkBlobRefused(t, node1, img)
	checkBlobRefused(t, node2, img)
	if n := node2.downloaded(t, ""); n != 0 {
		t.Errorf("node-2 received %d bytes without the right to any", n)
	}
	second.mustPull(t, img, account)
	second.check(t, img)
	if n := front.blobBytes(); n != 0 {
		t.Errorf("the registry sent %d bytes of blobs that the cluster had", n)
	}
	cluster.checkNoSecrets(t, accountSecrets())
}

func TestPrivateTokenAuth(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	tokens := guard(front)
	img := newImage(t, "team/private", 4<<20, 5)
	img.push(t, registry.url)
	cluster := newCluster(t, front.URL, clusterOptions{})
	node1, node2 := cluster.node(t, "node-1"), cluster.node(t, "node-2")
	first, second := startContainerd(t, "node-1", node1.mirror), startContainerd(t, "node-2", node2.mirror)

	checkRefused(t, front, first, img, "")
	checkRefused(t, front, first, img, user+":wrong")
	first.mustPull(t, img, account)
	first.check(t, img)
	front.checkSentOnce(t, img)

	front.reset()
	checkRefused(t, front, second, img, "")
	checkBlobRefused(t, node1, img)
	checkBlobRefused(t, node2, img)
	second.mustPull(t, img, account)
	second.check(t, img)
	if n := front.blobBytes(); n != 0 {
		t.Errorf("the registry sent %d bytes of blobs that the cluster had", n)
	}
	cluster.checkNoSecrets(t, append(accountSecrets(), tokens.issued()...))
}

// manyReads makes the supernode ask for a blob in many requests, so that a
// token is needed again and again.
var manyReads = clusterOptions{supernode: []string{"--origin-segment", "1MiB", "--origin-parallel", "2"}}

// TestTokenExpiresAnotherIsThere expires the token that a fetch began with once
// another node wants the same image: both pulls go through.
func TestTokenExpiresAnotherIsThere(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	tokens := guard(front)
	img := newImage(t, "team/expiring", 16<<20, 6)
	img.push(t, registry.url)
	cluster := newCluster(t, front.URL, manyReads)
	node1, node2 := cluster.node(t, "node-1"), cluster.node(t, "node-2")
	first, second := startContainerd(t, "node-1", node1.mirror), startContainerd(t, "node-2", node2.mirror)

	front.slow(3 << 20)
	firstEnd := first.beginPull(t, img, account)
	front.awaitSent(t, "/blobs/", 2<<20)
	old := tokens.issued()
	secondEnd := second.beginPull(t, img, account)
	for _, digest := range img.layers[:2] { // the large ones
		testenv.Eventually(t, func() bool {
			_, known := cluster.holders(t, digest)["node-2"]
			return known
		}, "node-2 has some of "+digest)
	}
	tokens.expire(old)
	for i, end := range []<-chan result{firstEnd, secondEnd} {
		if r := <-end; r.err != nil {
			t.Errorf("pull on node %d: %v\n%s", i+1, r.err, r.out)
		}
	}
	if t.Failed() {
		return
	}
	if n := front.refused(); n == 0 {
		t.Error("the old token was never used after its end: the test shows nothing")
	}
	first.check(t, img)
	second.check(t, img)
	front.checkSentOnce(t, img)
	cluster.checkNoSecrets(t, append(accountSecrets(), tokens.issued()...))
}

// TestTokenExpiresAlone expires the only token in mid-pull. The mirror has no
// other to go on with, and containerd 1.6 asks again with the old one before it
// gives up. What was fetched counts when it is told to pull again, as kubelet
// does.
func TestTokenExpiresAlone(t *testing.T) {
	needRuntimes(t)
	registry := startRegistry(t, "")
	front := newFront(t, registry.url)
	tokens := guard(front)
	img := newImage(t, "team/expiring", 16<<20, 7)
	img.push(t, registry.url)
	cluster := newCluster(t, front.URL, manyReads)
	runtime := startContainerd(t, "node-1", cluster.node(t, "node-1").mirror)

	front.slow(6 << 20)
	end := runtime.beginPull(t, img, account)
	front.awaitSent(t, "/blobs/", 4<<20)
	tokens.expire(tokens.issued())
	if r := <-end; r.err != nil {
		t.Logf("the first pull: %v\n%s", r.err, r.out)
		runtime.mustPull(t, img, account)
	}
	runtime.check(t, img)
	front.checkSentOnce(t, img)
	cluster.checkNoSecrets(t, append(accountSecrets(), tokens.issued()...))
}
