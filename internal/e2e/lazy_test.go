package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/dfdaemon"
	"github.com/damselfly-io/damselfly/internal/e2e/registrytest"
	"github.com/damselfly-io/damselfly/internal/fdkeeper"
	"github.com/damselfly-io/damselfly/supernode"
)

// program is a program on a node, without credentials, like the snapshotter.
type program struct {
	t      testing.TB
	client apiv1.NodeClient
	http   *http.Client
}

func newProgram(t testing.TB, n *node) *program {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	socket := strings.TrimSuffix(n.c.Socket, ".sock") + "-http.sock"
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		_ = conn.Close()
	})
	return &program{t: t, client: apiv1.NewNodeClient(conn), http: &http.Client{Transport: tr, Timeout: 20 * time.Second}}
}

// grouped is a blob cut into groups.
type grouped struct {
	data []byte
	id   string
	ends []int64
}

// newGrouped makes a blob of n groups of 10 to 400 KB and adds it to org/app.
func newGrouped(c *cluster, n int, seed uint64) *grouped {
	rnd := rand.New(rand.NewPCG(seed, 1))
	g := &grouped{}
	end := int64(0)
	for range n {
		end += 10_000 + rnd.Int64N(390_000)
		g.ends = append(g.ends, end)
	}
	g.data = registrytest.Random(int(end), seed)
	g.id = c.reg.Blob("org/app", g.data)
	return g
}

func (g *grouped) path() string { return registrytest.BlobPath("org/app", g.id) }

func (g *grouped) source() *apiv1.Source {
	return &apiv1.Source{
		TaskId: g.id, Url: "https://reg.test" + g.path(),
		Table: &apiv1.Table{Length: int64(len(g.data)), Ends: g.ends},
	}
}

// group is where group i is.
func (g *grouped) group(i int) (off, n int64) {
	if i > 0 {
		off = g.ends[i-1]
	}
	return off, g.ends[i] - off
}

// read reads group i and compares it.
func (p *program) read(g *grouped, i int) error {
	off, n := g.group(i)
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	stream, err := p.client.Read(ctx, &apiv1.ReadRequest{Source: g.source(), Offset: off, Length: n})
	if err != nil {
		return err
	}
	var got []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		got = append(got, m.Data...)
	}
	if !bytes.Equal(got, g.data[off:off+n]) {
		return fmt.Errorf("group %d: %d bytes that are not the blob's", i, len(got))
	}
	return nil
}

// mustRead reads groups and returns how many bytes they have.
func (p *program) mustRead(g *grouped, groups ...int) (sum int64) {
	p.t.Helper()
	for _, i := range groups {
		if err := p.read(g, i); err != nil {
			p.t.Fatalf("reading group %d: %v", i, err)
		}
		_, n := g.group(i)
		sum += n
	}
	return sum
}

// get asks the node's own mirror.
func (p *program) get(path string, header ...string) answer {
	return fetch(p.http, "http://dfdaemon"+path, header...)
}

func TestLazyReadMovesOnlyItsGroups(t *testing.T) {
	c := newCluster(t, options{nodes: 2})
	c.ready()
	g := newGrouped(c, 200, 31)
	first, second := newProgram(t, c.nodes[0]), newProgram(t, c.nodes[1])
	groups := []int{0, 150, 17, 18, 199, 3}
	want := first.mustRead(g, groups...)
	if sent := c.reg.Sent(g.path()); sent != want {
		t.Errorf("the registry sent %d bytes for groups of %d", sent, want)
	}
	if n := len(c.reg.Hits(http.MethodHead, g.path())); n != 0 {
		t.Errorf("%d HEAD requests for what the reads settle", n)
	}
	st, err := first.client.Open(t.Context(), &apiv1.OpenRequest{Source: g.source()})
	if err != nil || st.HeldBytes != want || st.FromOrigin != 0 || int(st.Pieces) != len(g.ends) {
		t.Errorf("the node holds %v, error %v; want %d bytes", st, err, want)
	}
	// The last group too, although nobody has checked the whole.
	if got := second.mustRead(g, groups...); got != want {
		t.Error("another size on the second node")
	}
	if got := metric(t, c.nodes[1].c.HTTP, `damselfly_piece_download_bytes_total{from="peer"}`) +
		metric(t, c.nodes[1].c.HTTP, `damselfly_piece_download_bytes_total{from="supernode"}`); int64(got) != want {
		t.Errorf("the second node received %.0f bytes for %d", got, want)
	}
}

func TestLazyReadOfABlobThatWasPulledBefore(t *testing.T) {
	c := newCluster(t, options{nodes: 3})
	c.ready()
	g := newGrouped(c, 60, 32)
	path := g.path() + ns
	mustBe(t, "the pull", c.nodes[0].get(path), g.data)
	for _, n := range c.nodes { // held whole; and of the swarm, which has another table
		newProgram(t, n).mustRead(g, 0, 59, 30, 31)
	}
	mustBe(t, "a pull after lazy reads", c.nodes[1].get(path), g.data)

	lazy := newGrouped(c, 60, 33)
	newProgram(t, c.nodes[0]).mustRead(lazy, 5, 59)
	for _, n := range c.nodes {
		mustBe(t, "a pull of what was read lazily", n.get(lazy.path()+ns), lazy.data)
	}
	newProgram(t, c.nodes[2]).mustRead(lazy, 0, 59)
}

func TestNodeReadsByTheCredentialOfItsClient(t *testing.T) {
	const token = "Bearer good"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("robot:secret"))
	config := filepath.Join(t.TempDir(), "config.json")
	c := newCluster(t, options{
		nodes: 2,
		super: func(c *supernode.Config) { c.AuthTTL = time.Nanosecond },
		node: func(_ int, c *dfdaemon.Config) {
			c.DockerConfig, c.AuthTTL = config, time.Nanosecond
		},
	})
	if err := os.WriteFile(config, []byte(`{"auths":{"`+c.reg.Host()+`":{"auth":"`+strings.TrimPrefix(basic, "Basic ")+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c.ready()
	g := newGrouped(c, 50, 34)
	body, digest := c.reg.Manifest("org/app", "v1", g.id)
	c.reg.Allow("org/app", token)
	n, p := c.nodes[0], newProgram(t, c.nodes[0])
	manifest := "/v2/org/app/manifests/" + digest + ns

	if err := p.read(g, 0); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without any credential: %v", err)
	}
	if a := p.get(manifest); a.status != http.StatusUnauthorized {
		t.Errorf("without any credential: %d", a.status)
	}
	mustBe(t, "a client's manifest", n.get(manifest, "Authorization", token), body)
	p.mustRead(g, 1, 2)
	mustBe(t, "the manifest", p.get(manifest), body)

	c.reg.Allow("org/app", basic) // the token has ended; the configured credential counts
	p.mustRead(g, 3, 4)
	mustBe(t, "a blob", p.get(g.path()+ns), g.data)
	if a := n.get(g.path()+ns, "Range", "bytes=0-99"); a.status != http.StatusUnauthorized {
		t.Errorf("a client without a credential got %d: %d bytes", a.status, len(a.body))
	}

	// A manifest that only the node was given serves no client.
	other, artifact := c.reg.Manifest("org/app", "artifact", g.id)
	mustBe(t, "the artifact", p.get("/v2/org/app/manifests/"+artifact+ns), other)
	c.reg.SetDown(503)
	mustBe(t, "the artifact with the registry down", p.get("/v2/org/app/manifests/"+artifact+ns), other)
	if a := n.get("/v2/org/app/manifests/" + artifact + ns); a.status != http.StatusServiceUnavailable {
		t.Errorf("a client without a credential got %d", a.status)
	}
	p.mustRead(g, 1, 40)
	// A node that has not been let in gets nothing of it.
	if err := newProgram(t, c.nodes[1]).read(g, 1); status.Code(err) != codes.Unavailable {
		t.Errorf("a node without a grant: %v", err)
	}
}

func TestNodeReadsOnlyAllowedRegistries(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	p := newProgram(t, c.nodes[0])
	g := newGrouped(c, 3, 35)
	src := g.source()
	src.Url = strings.Replace(src.Url, "reg.test", "evil.test", 1)
	_, err := p.client.Open(t.Context(), &apiv1.OpenRequest{Source: src})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "--allow-registry evil.test") {
		t.Errorf("%v, want PermissionDenied that says what to do", err)
	}
	src = g.source()
	src.TaskId = registrytest.Digest(nil)
	if _, err := p.client.Open(t.Context(), &apiv1.OpenRequest{Source: src}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another task than the URL's: %v", err)
	}
	info, err := p.client.Info(t.Context(), &apiv1.InfoRequest{})
	if err != nil || info.Name != "node-0" || !info.Connected || !strings.HasSuffix(info.HttpSocket, "-http.sock") {
		t.Errorf("Info: %v, %v", info, err)
	}
	fds := strings.TrimSuffix(c.nodes[0].c.Socket, ".sock") + "-fds.sock"
	for _, socket := range []string{c.nodes[0].c.Socket, info.HttpSocket, fds} {
		if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", socket, fi, err)
		}
	}
}

func TestLazyReadWithoutASupernode(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	c.super.down()
	g := newGrouped(c, 100, 36)
	p := newProgram(t, c.nodes[0])
	want := p.mustRead(g, 80, 2, 99)
	if sent := c.reg.Sent(g.path()); sent != want {
		t.Errorf("the registry sent %d bytes for groups of %d", sent, want)
	}
}

func TestProfilesReachOtherNodesAndSurviveARestart(t *testing.T) {
	c := newCluster(t, options{nodes: 2})
	c.ready()
	image := registrytest.Digest([]byte("manifest"))
	report := &apiv1.ReportAccessRequest{Image: image}
	for i := range uint32(300) {
		report.Accesses = append(report.Accesses, &apiv1.Access{Blob: registrytest.Digest([]byte{byte(i % 3)}), Group: 300 - i})
	}
	first, second := newProgram(t, c.nodes[0]), newProgram(t, c.nodes[1])
	none, err := second.client.Profile(t.Context(), &apiv1.ProfileRequest{Image: image})
	if err != nil || len(none.Accesses) != 0 || none.Reports != 0 {
		t.Errorf("of an image that nobody has reported: %v, %v", none, err)
	}
	if _, err := first.client.ReportAccess(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		p, err := second.client.Profile(t.Context(), &apiv1.ProfileRequest{Image: image})
		if err != nil || p.Reports != 1 || !slices.EqualFunc(p.Accesses, report.Accesses, func(a, b *apiv1.Access) bool {
			return a.Blob == b.Blob && a.Group == b.Group
		}) {
			t.Errorf("%s: %d accesses of %d reports, error %v", when, len(p.GetAccesses()), p.GetReports(), err)
		}
	}
	check("at once")
	c.super.down()
	if _, err := first.client.ReportAccess(t.Context(), report); status.Code(err) != codes.Unavailable {
		t.Errorf("without a supernode: %v", err)
	}
	c.super.up(c.sc.HTTP)
	c.ready()
	check("after a restart")
	if _, err := first.client.ReportAccess(t.Context(), &apiv1.ReportAccessRequest{Image: "latest"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an invalid report: %v", err)
	}
	info, err := first.client.Info(t.Context(), &apiv1.InfoRequest{})
	if err != nil || len(info.TrustKeys) == 0 || !bytes.Contains(info.TrustKeys[0], []byte("PUBLIC KEY")) {
		t.Errorf("the supernode's keys: %v, %v", info, err)
	}
}

func TestDaemonHoldsDescriptors(t *testing.T) {
	c := newCluster(t, options{nodes: 1})
	c.ready()
	held := fdkeeper.NewClient(strings.TrimSuffix(c.nodes[0].c.Socket, ".sock") + "-fds.sock")
	f, err := os.CreateTemp(t.TempDir(), "held")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read from after
	if _, err := f.WriteString("content"); err != nil {
		t.Fatal(err)
	}
	if err := held.Put(t.Context(), fdkeeper.Set{Name: "mount-1", Stamp: 1, Files: []*os.File{f}}); err != nil {
		t.Fatal(err)
	}
	set, err := held.Get(t.Context(), "mount-1")
	if err != nil || len(set.Files) != 1 {
		t.Fatalf("%v, %v", set, err)
	}
	got := make([]byte, 7)
	if _, err := set.Files[0].ReadAt(got, 0); err != nil || string(got) != "content" {
		t.Errorf("the descriptor reads %q, %v", got, err)
	}
	if err := errors.Join(set.Files[0].Close(), held.Close()); err != nil {
		t.Error(err)
	}
}

// BenchmarkLazyRead measures reads of one group by a node whose supernode has
// the blob, one at a time.
func BenchmarkLazyRead(b *testing.B) {
	c := newCluster(b, options{nodes: 2, node: func(_ int, c *dfdaemon.Config) { c.Linger = 10 * time.Second }})
	c.ready()
	g := newGrouped(c, 1000, 37)
	if a := c.nodes[0].get(g.path() + ns); a.status != http.StatusOK {
		b.Fatal(a.status)
	}
	c.nodes[0].down()
	p := newProgram(b, c.nodes[1])
	order := rand.Perm(1000)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		p.mustRead(g, order[len(took)%len(order)])
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*q/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", q))
	}
}
