package runtimetest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// patience is how long anything in these tests may take.
const patience = 45 * time.Second

// cluster is a supernode and its dfdaemons.
type cluster struct {
	dir       string // of all data directories and logs
	upstream  string // URL of the registry
	supernode *daemon
	nodes     []*daemon
	grpc      string
	nodeArgs  []string
}

// daemon is a supernode or a dfdaemon.
type daemon struct {
	*process
	name, http, mirror string
	path               string
	args               []string
	at                 place
	home               *testing.T // ends it, also if a subtest has started it again
}

// place is where a process runs: on the loopback of this network by default.
type place struct {
	ip     string
	prefix []string // words before the command
}

// address returns one that nobody listens on.
func (p place) address(t *testing.T) string {
	t.Helper()
	addr := freeAddress(t)
	if p.ip == "" {
		return addr
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(p.ip, port)
}

// clusterOptions changes what the daemons are run with.
type clusterOptions struct {
	supernode, node []string
	at              place // of the supernode
}

// newCluster runs a supernode.
func newCluster(t *testing.T, upstream string, o clusterOptions) *cluster {
	t.Helper()
	c := &cluster{dir: shortDir(t), upstream: upstream, grpc: o.at.address(t), nodeArgs: o.node}
	d := &daemon{name: "supernode", http: o.at.address(t), path: program(t, "supernode"), at: o.at}
	d.args = append([]string{
		"--name", "supernode", "--http", d.http, "--grpc", c.grpc, "--peer", o.at.address(t),
		"--data-dir", filepath.Join(c.dir, "supernode"), "--cache-min-free", "0",
	}, o.supernode...)
	c.supernode = d
	c.run(t, d)
	return c
}

// run starts a daemon, or starts it again.
func (c *cluster) run(t *testing.T, d *daemon) {
	t.Helper()
	d.launch(t, c.dir)
	d.awaitHTTP(t, "http://"+d.http+"/readyz")
}

// launch starts a daemon and waits for nothing.
func (d *daemon) launch(t *testing.T, dir string) {
	t.Helper()
	if d.home == nil {
		d.home = t
	}
	words := append(append(append([]string{}, d.at.prefix...), d.path), d.args...)
	d.process = start(d.home, d.name, filepath.Join(dir, d.name+".log"), words[0], words[1:]...)
}

// node runs a dfdaemon and waits until it has joined.
func (c *cluster) node(t *testing.T, name string) *daemon {
	t.Helper()
	return c.nodeAt(t, name, place{})
}

func (c *cluster) nodeAt(t *testing.T, name string, at place) *daemon {
	t.Helper()
	d := &daemon{name: name, http: at.address(t), mirror: at.address(t), path: program(t, "dfdaemon"), at: at}
	d.args = append([]string{
		"--name", name, "--supernode", c.grpc, "--http", d.http, "--mirror", d.mirror, "--peer", at.address(t),
		"--socket", filepath.Join(c.dir, name+".sock"), "--data-dir", filepath.Join(c.dir, name), "--cache-min-free", "0",
		"--allow-registry", registryName + "=" + c.upstream,
	}, c.nodeArgs...)
	c.run(t, d)
	c.nodes = append(c.nodes, d)
	return d
}

// get returns the answer to a request to a daemon's HTTP address.
func (d *daemon) get(t *testing.T, path string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.http+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if body, err = drain(resp); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// downloaded returns how many bytes of pieces a node has received from a kind of
// sender, or from all if that is empty. What the store had is not counted.
func (d *daemon) downloaded(t *testing.T, from string) int64 {
	t.Helper()
	const name = `damselfly_piece_download_bytes_total{from="`
	_, body := d.get(t, "/metrics")
	sum, found := 0.0, false
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		sender, value, _ := strings.Cut(strings.TrimSpace(rest), `"} `)
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		found = true
		if sender == from || from == "" && sender != "local" {
			sum += n
		}
	}
	if !found {
		t.Fatalf("%s has no metric %s", d.name, name)
	}
	return int64(sum)
}

// holders returns how many bytes of a blob each node holds, by the supernode's
// knowledge.
func (c *cluster) holders(t *testing.T, digest string) map[string]int64 {
	t.Helper()
	status, body := c.supernode.get(t, "/api/v1/tasks/"+digest)
	if status == http.StatusNotFound {
		return nil
	}
	var task struct {
		Holders []struct {
			Name      string `json:"name"`
			HeldBytes int64  `json:"held_bytes"`
		} `json:"holders"`
	}
	if err := json.Unmarshal([]byte(body), &task); status != http.StatusOK || err != nil {
		t.Fatalf("task %s: status %d: %v\n%s", digest, status, err, body)
	}
	held := map[string]int64{}
	for _, h := range task.Holders {
		held[h.Name] = h.HeldBytes
	}
	return held
}

// awaitHeld waits until the supernode knows that a node holds all of an image.
func (c *cluster) awaitHeld(t *testing.T, img *image, node string) {
	t.Helper()
	for digest, blob := range img.blobs {
		testenv.Eventually(t, func() bool { return c.holders(t, digest)[node] == int64(len(blob)) },
			fmt.Sprintf("the supernode knows that %s holds %.19s", node, digest))
	}
}

// checkNoSecrets fails if any file of the daemons, logs included, has one of the
// secrets in it.
func (c *cluster) checkNoSecrets(t *testing.T, secrets []string) {
	t.Helper()
	checked := 0
	err := filepath.WalkDir(c.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		checked++
		for _, s := range secrets {
			if strings.Contains(string(b), s) {
				t.Errorf("%s has the secret %q in it", name, s)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 3 || len(secrets) == 0 {
		t.Errorf("looked for %d secrets in %d files", len(secrets), checked)
	}
}
