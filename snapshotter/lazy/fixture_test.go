package lazy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// node is a node of a test: what stays when the process is started again.
type node struct {
	t        *testing.T
	dir      string
	registry *indextest.Registry
	key      *trust.PrivateKey
	kernel   *fakeKernel
	opened   atomic.Int64 // repositories

	mu  sync.Mutex
	now time.Time
}

func newNode(t *testing.T) *node {
	t.Helper()
	key, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return &node{
		t: t, dir: t.TempDir(), registry: indextest.NewRegistry(t, true), key: key,
		kernel: &fakeKernel{at: map[string]string{}}, now: time.Unix(1_700_000_000, 0),
	}
}

func (n *node) clock() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

func (n *node) pass(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = n.now.Add(d)
}

func (n *node) open(ctx context.Context, ref image.Ref) (*image.Source, error) {
	n.opened.Add(1)
	return image.Open(ctx, ref, image.Options{MaxAttempts: 1})
}

func (n *node) policy(context.Context) (*trust.Policy, error) {
	return (*trust.Policy)(nil).With(n.key.Public())
}

// process is one process of the snapshotter on a node.
type process struct {
	*Images
	n       *node
	devices *device.Store
	backend *fakeBackend
	once    sync.Once
}

// start starts a process, which ends with the test.
func (n *node) start(change func(*Options)) *process {
	n.t.Helper()
	devices, err := device.Open(device.Options{Dir: filepath.Join(n.dir, "devices")})
	if err != nil {
		n.t.Fatal(err)
	}
	p := &process{n: n, devices: devices, backend: &fakeBackend{kernel: n.kernel, name: "fake"}}
	o := Options{
		Dir: filepath.Join(n.dir, "lazy"), Devices: devices, Backend: p.backend, Registry: n.open, Policy: n.policy, Now: n.clock,
		After:  func(time.Duration) <-chan time.Time { return nil }, // never
		kernel: n.kernel,
	}
	if change != nil {
		change(&o)
	}
	if p.Images, err = New(o); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(p.end)
	return p
}

// end ends the process; what is mounted stays mounted.
func (p *process) end() {
	p.once.Do(func() {
		p.Close()
		if err := p.devices.Close(); err != nil {
			p.n.t.Error(err)
		}
	})
}

// fakeKernel knows what is mounted, by directory.
type fakeKernel struct {
	mu sync.Mutex
	at map[string]string
}

func (k *fakeKernel) set(dir, what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.at[dir] = what; what == "" {
		delete(k.at, dir)
	}
}

func (k *fakeKernel) get(dir string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at[dir]
}

func (k *fakeKernel) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.at)
}

func (k *fakeKernel) attached(dir string) bool { return k.get(dir) != "" }

func (k *fakeKernel) detach(dir string) error {
	k.set(dir, "")
	return nil
}

// fakeBackend mounts in a fakeKernel.
type fakeBackend struct {
	kernel *fakeKernel
	name   string
	// fail may make an operation fail: "mount", "adopt" or "unmount". It may block.
	fail func(op string, im *backend.Image) error
	gone chan struct{} // of mounts, if not nil

	mu  sync.Mutex
	ops []string
}

var _ backend.Backend = (*fakeBackend)(nil)

func (b *fakeBackend) Name() string { return b.name }
func (b *fakeBackend) Close() error { return nil }

func (b *fakeBackend) do(op string, im *backend.Image) error {
	b.mu.Lock()
	b.ops = append(b.ops, op)
	fail := b.fail
	b.mu.Unlock()
	if fail != nil {
		return fail(op, im)
	}
	return nil
}

func (b *fakeBackend) setFail(f func(op string, im *backend.Image) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = f
}

// did returns the operations so far, in order.
func (b *fakeBackend) did() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.ops, " ")
}

func (b *fakeBackend) Mount(ctx context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	if err := b.do("mount", im); err != nil {
		return nil, err
	}
	if b.kernel.attached(dir) {
		return nil, fmt.Errorf("%s is in use", dir)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return nil, fmt.Errorf("%s is not an empty directory: %w", dir, err)
	}
	if _, err := im.Tree(ctx); err != nil { // as the FUSE backend does
		return nil, err
	}
	b.kernel.set(dir, b.name)
	return b.mounted(im, dir), nil
}

func (b *fakeBackend) Adopt(_ context.Context, im *backend.Image, dir string) (backend.Mount, error) {
	if err := b.do("adopt", im); err != nil {
		return nil, err
	}
	if b.kernel.get(dir) != b.name {
		return nil, fmt.Errorf("nothing is there: %w", backend.ErrLost)
	}
	return b.mounted(im, dir), nil
}

func (b *fakeBackend) mounted(im *backend.Image, dir string) backend.Mount {
	m := &fakeMount{b, im, dir}
	if b.gone != nil {
		return lastingMount{m}
	}
	return m
}

type fakeMount struct {
	b   *fakeBackend
	im  *backend.Image
	dir string
}

func (m *fakeMount) Unmount(context.Context) error {
	if err := m.b.do("unmount", m.im); err != nil {
		return err
	}
	m.b.kernel.set(m.dir, "")
	return nil
}

type lastingMount struct{ *fakeMount }

func (m lastingMount) Gone() <-chan struct{} { return m.b.gone }

// pulled is an image in the registry, as containerd sees it.
type pulled struct {
	ref      string
	manifest digest.Digest
	layers   []digest.Digest // digests
	chains   []digest.Digest
}

// layersOf returns the files of layers that differ for each seed.
func layersOf(seed uint32, n int) []indextest.Files {
	var all []indextest.Files
	for i := range n {
		all = append(all, indextest.Files{
			fmt.Sprintf("lib/file%d", i): indextest.Noise(seed*100+uint32(i), 30_000), fmt.Sprintf("etc/%d", i): fmt.Sprint(seed),
		})
	}
	return all
}

// push pushes an image and, if the options have a key, its index.
func (n *node) push(repo string, o *imageindex.ConvertOptions, layers ...indextest.Files) *pulled {
	n.t.Helper()
	ref := n.registry.Put(repo, indextest.Image(n.t, "amd64", layers...))
	if o != nil {
		n.convert(ref, ref, *o)
	}
	return n.look(ref)
}

func (n *node) signed() *imageindex.ConvertOptions { return &imageindex.ConvertOptions{Key: n.key} }

func (n *node) convert(from, to string, o imageindex.ConvertOptions) {
	n.t.Helper()
	src := n.source(from)
	o.Dir = n.t.TempDir()
	target, err := image.Parse(to)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := imageindex.Convert(n.t.Context(), src, target, o); err != nil {
		n.t.Fatal(err)
	}
}

func asImage() imageindex.ConvertOptions {
	return imageindex.ConvertOptions{AsImage: true, Build: build.Options{Mode: build.AsImage}}
}

func (n *node) source(s string) *image.Source {
	n.t.Helper()
	ref, err := image.Parse(s)
	if err != nil {
		n.t.Fatal(err)
	}
	src, err := image.Open(n.t.Context(), ref, image.Options{})
	if err != nil {
		n.t.Fatal(err)
	}
	return src
}

// look returns what a pull of an image's first platform would be told.
func (n *node) look(ref string) *pulled {
	n.t.Helper()
	all := n.platforms(ref)
	return all[0]
}

func (n *node) platforms(ref string) []*pulled {
	n.t.Helper()
	images, err := n.source(ref).Images(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	var all []*pulled
	for _, img := range images {
		var config v1.Image
		if err := json.Unmarshal(img.Config, &config); err != nil {
			n.t.Fatal(err)
		}
		p := &pulled{ref: ref, manifest: img.Descriptor.Digest, chains: chains(config.RootFS.DiffIDs)}
		for _, l := range img.Layers {
			p.layers = append(p.layers, l.Descriptor.Digest)
		}
		all = append(all, p)
	}
	return all
}

// request is what containerd asks for a layer.
func (x *pulled) request(i int) snapshots.Request {
	return snapshots.Request{ChainID: x.chains[i].String(), Labels: map[string]string{
		labelImage: x.ref, labelManifest: x.manifest.String(), labelLayer: x.layers[i].String(),
	}}
}

// pull asks for all layers and returns the lazy ones.
func (p *process) pull(x *pulled) []snapshots.Layer {
	p.n.t.Helper()
	var all []snapshots.Layer
	for i := range x.chains {
		r := x.request(i)
		r.Below = all
		d := p.Layer(p.n.t.Context(), r)
		if !d.Lazy {
			p.n.t.Fatalf("layer %d of %s is ordinary: %s", i, x.ref, d.Reason)
		}
		all = append(all, snapshots.Layer{ChainID: r.ChainID, Labels: d.Labels})
	}
	return all
}

// mountOf mounts a chain and returns its directory.
func (p *process) mountOf(layers []snapshots.Layer) string {
	p.n.t.Helper()
	dir, err := p.Mounted(p.n.t.Context(), layers)
	if err != nil {
		p.n.t.Fatal(err)
	}
	if !p.n.kernel.attached(dir) {
		p.n.t.Fatalf("nothing is mounted at %s", dir)
	}
	return dir
}

// settled waits for what pulls have set off.
func (p *process) settled() { p.wg.Wait() }

func (n *node) indexFiles() int {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "lazy", "indexes"))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(entries)
}

var errTest = errors.New("failed by the test")
