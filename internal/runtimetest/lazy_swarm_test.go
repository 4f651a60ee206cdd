package runtimetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// repeated is how many bytes of blobs the registry has sent more than once.
func (f *front) repeated(t *testing.T) (n int64) {
	t.Helper()
	type span struct{ first, end int64 }
	blobs := map[string][]span{}
	hits, _ := f.seen("/blobs/")
	for _, h := range hits {
		if h.status < 300 && h.bytes > 0 {
			first := 0
			if h.span != "" {
				first, _ = bounds(t, h.span, 1<<40)
			}
			blobs[h.path] = append(blobs[h.path], span{int64(first), int64(first) + h.bytes})
		}
	}
	for _, spans := range blobs {
		slices.SortFunc(spans, func(a, b span) int { return int(a.first - b.first) })
		end := int64(0)
		for _, s := range spans {
			n += max(0, min(end, s.end)-s.first)
			end = max(end, s.end)
		}
	}
	return n
}

// network is a bridge of this machine with network namespaces behind it.
type network struct{ ip, bridge, subnet string }

// newNetwork makes a bridge, which is removed when the test ends.
func newNetwork(t *testing.T) *network {
	t.Helper()
	// Of the range for benchmarks, which nobody routes.
	third, err := rand.Int(rand.Reader, big.NewInt(256))
	if err != nil {
		t.Fatal(err)
	}
	n := &network{bridge: "df" + strings.ToLower(rand.Text()[:8]), subnet: fmt.Sprintf("198.18.%d.", third)}
	n.ip = n.subnet + "1"
	n.do(t, "link", "add", n.bridge, "type", "bridge")
	t.Cleanup(func() {
		// The context of the test has ended.
		if out, err := command(context.Background(), testenv.Tool(t, "ip"), "link", "delete", n.bridge); err != nil {
			t.Errorf("delete the bridge: %v: %s", err, out)
		}
	})
	n.do(t, "address", "add", n.ip+"/24", "dev", n.bridge)
	n.do(t, "link", "set", n.bridge, "up")
	return n
}

func (n *network) do(t *testing.T, args ...string) {
	t.Helper()
	if out, err := command(t.Context(), testenv.Tool(t, "ip"), args...); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// host makes a network namespace with the address number i.
func (n *network) host(t *testing.T, i int) place {
	t.Helper()
	name := testenv.Netns(t)
	ip, link := n.subnet+strconv.Itoa(10+i), fmt.Sprintf("%s-%d", n.bridge, i)
	n.do(t, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
	n.do(t, "link", "set", link, "master", n.bridge, "up")
	n.do(t, "-netns", name, "address", "add", ip+"/24", "dev", "eth0")
	n.do(t, "-netns", name, "link", "set", "eth0", "up")
	return place{ip: ip, prefix: []string{testenv.Tool(t, "nsenter"), "--net=/run/netns/" + name}}
}

// TestLazySwarm pulls an image with four containerds on four hosts of a network:
// each byte leaves the registry about once for the first three, and not at all
// for the last.
func TestLazySwarm(t *testing.T) {
	needLazy(t)
	t.Parallel()
	net := newNetwork(t)
	site := newLazySiteAt(t, net.ip)
	img := newBulk(t, "team/swarm", 48, 256<<10, 4001)
	site.push(t, img)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(rand.Text()+rand.Text()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	join := []string{"--join-token-file", token}
	cluster := site.cluster(t, clusterOptions{at: place{ip: net.ip}, supernode: join, node: join})
	var nodes []*lazyNode
	for i := range 4 {
		nodes = append(nodes, cluster.lazyNode(t, fmt.Sprintf("host-%d", i), lazyOptions{backend: backends[i%2], trust: site.trust, at: net.host(t, i)}))
	}
	site.front.reset()
	site.front.slow(12 << 20)
	var group sync.WaitGroup
	errs := make([]error, 3)
	for i, n := range nodes[:3] {
		group.Go(func() { errs[i] = n.pull(t, img.image) })
	}
	group.Wait()
	var all []*readers
	for i, n := range nodes[:3] {
		if errs[i] != nil {
			t.Fatalf("pull on %s: %v", n.name, errs[i])
		}
		all = append(all, startReaders(n.view(t, img, 1), img.files))
	}
	for _, r := range all {
		r.check(t)
	}
	content := int64(0)
	for _, data := range img.files {
		content += int64(len(data))
	}
	again, sent := site.front.repeated(t), site.front.blobBytes()
	t.Logf("the registry sent %d bytes of blobs for content of %d, %d of them again", sent, content, again)
	if again > sent/50 || sent < content {
		t.Errorf("the registry sent %d bytes of blobs for content of %d, %d of them again", sent, content, again)
	}

	nodes[0].greet(t, img.image) // its program, too, is in the swarm then
	site.front.reset()
	last := nodes[3]
	last.mustPull(t, img.image)
	startReaders(last.view(t, img, 1), img.files).check(t)
	last.greet(t, img.image)
	if n := site.front.blobBytes(); n != 0 {
		hits, _ := site.front.seen("/blobs/")
		t.Errorf("the registry sent %d bytes of blobs to the last node: %+v", n, hits)
	}
}

// TestLazyManyContainers starts containers of one image at once: they share one
// device, and each group of content is fetched once.
func TestLazyManyContainers(t *testing.T) {
	needLazy(t)
	t.Parallel()
	const containers = 20
	site := newLazySite(t)
	cluster := site.cluster(t, clusterOptions{})
	for i, b := range backends {
		t.Run(b, func(t *testing.T) {
			img := newBulk(t, "team/many-"+b, 8, 256<<10, uint64(4100+i))
			site.push(t, img)
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			n.mustPull(t, img.image)
			site.front.reset()
			var group sync.WaitGroup
			failed := make([]error, containers)
			for i := range containers {
				group.Go(func() {
					out, err := n.runtime.ctrFor(t, patience, "run", "--rm", "--snapshotter", damselfly, img.ref(), fmt.Sprintf("many-%d", i))
					if err != nil {
						failed[i] = fmt.Errorf("%w: %s", err, out)
					}
				})
			}
			group.Wait()
			for i, err := range failed {
				if err != nil {
					t.Errorf("container %d: %v", i, err)
				}
			}
			startReaders(n.view(t, img, 1), img.files).check(t)
			walk(t, n.view(t, img, 1))
			devices, err := filepath.Glob(filepath.Join(n.data, "devices", "*", "data"))
			if err != nil || len(devices) != 1 {
				t.Errorf("%d devices, %v, want 1: %q", len(devices), err, devices)
			}
			total, missing := n.size(t, img.image)
			if got := n.written(t); missing != 0 || got != total {
				t.Errorf("%d bytes were written to a device of %d, of which %d are missing", got, total, missing)
			}
			if again := site.front.repeated(t); again != 0 {
				t.Errorf("the registry sent %d bytes again", again)
			}
		})
	}
}

// written is how many plain bytes the node has brought to devices.
func (n *lazyNode) written(t *testing.T) (sum int64) {
	t.Helper()
	_, body := n.snapshotter.get(t, "/metrics")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, `damselfly_mount_bytes_total{form="plain"`); ok {
			_, value, _ := strings.Cut(strings.TrimSpace(rest), "} ")
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("metric %q: %v", line, err)
			}
			sum += int64(v)
		}
	}
	return sum
}
