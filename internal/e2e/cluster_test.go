package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/config"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/supernode"
)

// process is a daemon that runs in the test's process.
type process struct {
	t      testing.TB
	name   string
	start  func(context.Context) error
	cancel context.CancelFunc
	ended  chan error
}

// up runs the process, and returns when health answers.
func (p *process) up(health string) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.ended = cancel, make(chan error, 1)
	go func() { p.ended <- p.start(ctx) }()
	testenv.Eventually(p.t, func() bool {
		select {
		case err := <-p.ended:
			p.t.Fatalf("%s ended at once: %v", p.name, err)
		default:
		}
		resp, err := http.Get("http://" + health + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, p.name+" to answer")
}

// down ends the process and waits for it.
func (p *process) down() {
	p.t.Helper()
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.cancel = nil
	select {
	case err := <-p.ended:
		if err != nil {
			p.t.Errorf("%s: %v", p.name, err)
		}
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s did not end", p.name)
	}
}

// cluster is a supernode and daemons before a registry.
type cluster struct {
	t     testing.TB
	reg   *registrytest.Registry
	super *process
	sc    supernode.Config
	nodes []*node
	log   *journal
}

type node struct {
	*process
	c dfdaemon.Config
}

// journal collects what the daemons log.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) contains(s string) func() bool {
	return func() bool { return strings.Contains(j.String(), s) }
}

// options change the configuration of the parts.
type options struct {
	nodes int
	super func(*supernode.Config)
	node  func(i int, c *dfdaemon.Config)
}

// newCluster starts a cluster, which ends with the test.
func newCluster(t testing.TB, o options) *cluster {
	t.Helper()
	c := &cluster{t: t, reg: registrytest.New(t), log: &journal{}}
	// Names of sockets are limited to some 100 bytes.
	dir, err := os.MkdirTemp("", "dfe2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what the daemons logged:\n%s", c.log)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	addr := addresses(t, 3+4*o.nodes)
	load(t, &c.sc)
	c.sc.HTTP, c.sc.GRPC, c.sc.Peer = addr[0], addr[1], addr[2]
	c.sc.Name, c.sc.DataDir, c.sc.CacheMinFree = "supernode-1", filepath.Join(dir, "supernode"), 0
	if o.super != nil {
		o.super(&c.sc)
	}
	c.super = &process{t: t, name: "supernode", start: func(ctx context.Context) error {
		return supernode.Run(ctx, c.sc, log.With("process", "supernode"))
	}}
	c.super.up(c.sc.HTTP)
	t.Cleanup(func() { c.super.down() })
	for i := range o.nodes {
		a := addr[3+4*i:]
		n := &node{}
		load(t, &n.c)
		n.c.Supernode, n.c.Mirror, n.c.Peer, n.c.HTTP, n.c.Proxy = []string{c.sc.GRPC}, a[0], a[1], a[2], a[3]
		n.c.Name = fmt.Sprintf("node-%d", i)
		n.c.DataDir, n.c.Socket = filepath.Join(dir, n.c.Name), filepath.Join(dir, n.c.Name+".sock")
		n.c.CacheMinFree, n.c.AllowRegistry = 0, []string{"reg.test=" + c.reg.URL}
		n.c.ProxyRules = []string{`/files/`}
		n.c.OriginGrace, n.c.Linger = 50*time.Millisecond, 50*time.Millisecond
		if o.node != nil {
			o.node(i, &n.c)
		}
		n.process = &process{t: t, name: n.c.Name, start: func(ctx context.Context) error {
			return dfdaemon.Run(ctx, n.c, log.With("process", n.c.Name))
		}}
		n.up(n.c.HTTP)
		t.Cleanup(func() { n.down() })
		c.nodes = append(c.nodes, n)
	}
	// Cleanups run last first: stalled bodies must end before daemons wait.
	return c
}

// load fills in the defaults of a configuration.
func load(t testing.TB, c any) {
	t.Helper()
	b, err := config.Bind(pflag.NewFlagSet("test", pflag.ContinueOnError), c)
	if err == nil {
		err = b.Load("")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// addresses picks n free addresses on loopback.
func addresses(t testing.TB, n int) []string {
	t.Helper()
	var out []string
	for range n {
		lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lis.Close() }() // all are open at the same time, so that all differ
		out = append(out, lis.Addr().String())
	}
	return out
}

// ready waits until all nodes are connected to the supernode.
func (c *cluster) ready() {
	c.t.Helper()
	for _, n := range c.nodes {
		testenv.Eventually(c.t, func() bool {
			resp, err := http.Get("http://" + n.c.HTTP + "/readyz")
			if err != nil {
				return false
			}
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		}, n.name+" to be connected")
	}
}

// holders asks the supernode which nodes hold pieces of a blob.
func (c *cluster) holders(id string) []string {
	resp, err := http.Get("http://" + c.sc.HTTP + "/api/v1/tasks/" + id)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var doc struct {
		Holders []struct {
			Name string `json:"name"`
		} `json:"holders"`
	}
	if json.NewDecoder(resp.Body).Decode(&doc) != nil {
		return nil
	}
	var names []string
	for _, h := range doc.Holders {
		names = append(names, h.Name)
	}
	return names
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

// get pulls path from the node's mirror with headers given as name, value.
func (n *node) get(path string, header ...string) answer {
	return fetch(client, "http://"+n.c.Mirror+path, header...)
}

func fetch(client *http.Client, url string, header ...string) answer {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

// all pulls path from all nodes at once.
func (c *cluster) all(path string, header ...string) []answer {
	answers := make([]answer, len(c.nodes))
	var clients sync.WaitGroup
	for i, n := range c.nodes {
		clients.Go(func() { answers[i] = n.get(path, header...) })
	}
	clients.Wait()
	return answers
}

// mustBe fails unless a is the whole of data.
func mustBe(t *testing.T, who string, a answer, data []byte) {
	t.Helper()
	if a.err != nil || a.status != http.StatusOK || !bytes.Equal(a.body, data) {
		t.Errorf("%s: status %d, %d bytes of %d, error %v: %.200q", who, a.status, len(a.body), len(data), a.err, a.body[:min(len(a.body), 200)])
	}
}

// metric reads a metric of a daemon; labels are as they are printed.
func metric(t testing.TB, http, name string) float64 {
	t.Helper()
	a := fetch(client, "http://"+http+"/metrics")
	for line := range strings.Lines(string(a.body)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return v
		}
	}
	return 0
}

// client gives up where a test would hang otherwise.
var client = &http.Client{Timeout: 20 * time.Second}

const ns = "?ns=reg.test"

// blob adds a blob and returns the paths at the mirror and at the registry.
func (c *cluster) blob(data []byte) (path, upstream string) {
	d := c.reg.Blob("org/app", data)
	upstream = registrytest.BlobPath("org/app", d)
	return upstream + ns, upstream
}

// proxied returns a client that goes through the node's proxy.
func proxied(t *testing.T, n *node) *http.Client {
	t.Helper()
	tr := &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: n.c.Proxy}, nil }}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}
