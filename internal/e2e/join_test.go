package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/supernode"
)

func TestJoinToken(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, options{
		nodes: 2,
		super: func(c *supernode.Config) { c.JoinTokenFile = token },
		node: func(i int, c *dfdaemon.Config) {
			if i == 0 {
				c.JoinTokenFile = token
			}
		},
	})
	testenv.Eventually(t, c.log.contains("wrong or missing join token: give the daemon the supernode's --join-token-file"), "a message that tells what to do")
	in, out := c.nodes[0], c.nodes[1]
	testenv.Eventually(t, func() bool { return fetch(client, "http://"+in.c.HTTP+"/readyz").status == 200 }, "the node with the token to be ready")
	if a := fetch(client, "http://"+out.c.HTTP+"/readyz"); a.status == 200 {
		t.Error("a node without the token is ready")
	}
	if strings.Contains(c.log.String(), "0123456789abcdef") {
		t.Error("the token is in the log")
	}
}

func TestPiecesOnlyForTickets(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	data := registrytest.Random(1<<20, 21)
	path, _ := c.blob(data)
	mustBe(t, "the pull", c.nodes[0].get(path), data)
	id := registrytest.Digest(data)
	for _, addr := range []string{c.nodes[0].c.Peer, c.sc.Peer} {
		for _, what := range []string{"/pieces/0", "/haves"} {
			for _, ticket := range []string{"", "x", "djE.AAAA"} {
				a := fetch(client, "http://"+addr+"/v1/tasks/"+id+what, pieces.HeaderTicket, ticket)
				if a.status != http.StatusForbidden || len(a.body) > 500 {
					t.Errorf("%s with ticket %q: status %d, %d bytes", what, ticket, a.status, len(a.body))
				}
			}
		}
	}
	if got := metric(t, c.nodes[0].c.HTTP, "damselfly_ticket_refused_total"); got != 6 {
		t.Errorf("%v refusals were counted, want 6", got)
	}
}

func TestFilesThroughTheProxy(t *testing.T) {
	c := newCluster(t, options{nodes: 2})
	c.ready()
	old, changed := registrytest.Random(3<<20, 22), registrytest.Random(3<<20, 23)
	c.reg.File("/files/model.bin", old, `"one"`)
	url := c.reg.URL + "/files/model.bin"
	for _, n := range c.nodes {
		a := fetch(proxied(t, n), url)
		mustBe(t, n.name, a, old)
		if a.header.Get("Etag") != `"one"` || a.header.Get("Content-Type") != "application/x-test" {
			t.Errorf("%s: header %v", n.name, a.header)
		}
	}
	if sent := c.reg.Sent("/files/model.bin"); sent > int64(len(old))*102/100 {
		t.Errorf("the origin sent %d bytes for %d", sent, len(old))
	}
	c.reg.File("/files/model.bin", changed, `"two"`)
	testenv.Eventually(t, func() bool { return fetch(proxied(t, c.nodes[0]), url).header.Get("Etag") == `"two"` }, "the change to be seen")
	mustBe(t, "the changed file", fetch(proxied(t, c.nodes[1]), url), changed)
	a := fetch(proxied(t, c.nodes[0]), url, "Range", "bytes=100-199")
	if a.status != 206 || string(a.body) != string(changed[100:200]) {
		t.Errorf("a range: status %d, %d bytes", a.status, len(a.body))
	}
}
