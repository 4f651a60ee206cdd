package lazy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

func TestPullMountRemove(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 3)...)
	ready, mounted, ended := 0, 0, 0
	p := n.start(func(o *Options) {
		o.Ready = func(float64) { ready++ }
		o.Mounted = func(m Mounted) func() {
			mounted++
			if m.Chain != x.chains[2] || m.Manifest != x.manifest || m.Layers != 3 || len(m.Devices) == 0 {
				t.Errorf("mounted %+v", m)
			}
			return func() { ended++ }
		}
	})
	layers := p.pull(x)
	dir := p.mountOf(layers)
	p.settled()
	if n.opened.Load() != 1 || mounted != 1 || ready != 1 || p.backend.did() != "mount" {
		t.Errorf("%d lookups, %d mounts, ready %d times, %s", n.opened.Load(), mounted, ready, p.backend.did())
	}
	for _, l := range layers {
		if l.Labels[LabelManifest] != x.manifest.String() || !strings.HasSuffix(l.Labels[LabelRepository], "/app") || l.Labels[LabelDevices] == "" || l.Labels[LabelTrusted] == "" {
			t.Errorf("labels %v", l.Labels)
		}
		u, err := p.Usage(t.Context(), l)
		if err != nil || u.Inodes == 0 || u.Size == 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		for _, k := range devicesIn(l.Labels[LabelDevices]) {
			if !p.Keep(k) {
				t.Errorf("device %s is not needed", k)
			}
		}
	}
	p.Mounts(func(m Mounted, at string) {
		if at != dir || m.Devices[0].Origins()[0] != n.registry.Host+"/app" {
			t.Errorf("mounted at %s, from %v", at, m.Devices[0].Origins())
		}
	})
	if a := p.Asked(); len(a) != 1 || a[0].Reason.Code != "" || a[0].Manifest != x.manifest || a[0].TrustedBy == "" {
		t.Errorf("asked %+v", a)
	}
	p.lookups.mu.Lock()
	if len(p.lookups.loaded) != 0 {
		t.Error("the indexes stay in memory after the mount")
	}
	p.lookups.mu.Unlock()

	// The lookup is forgotten; what the snapshots need stays.
	n.pass(keepYes)
	p.lookups.expire()
	if n.indexFiles() != 3 {
		t.Errorf("%d indexes on disk", n.indexFiles())
	}
	p.Idle(t.Context(), layers[2].ChainID)
	for i := len(layers) - 1; i >= 0; i-- {
		p.Removed(t.Context(), layers[i].ChainID)
	}
	if n.indexFiles() != 0 || n.kernel.count() != 0 || ended != 1 {
		t.Errorf("%d indexes, %d mounts are left, %d ended", n.indexFiles(), n.kernel.count(), ended)
	}
	if _, err := os.Stat(p.mounts.path(x.chains[2])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the mount: %v", err)
	}
	for _, k := range devicesIn(layers[0].Labels[LabelDevices]) {
		if p.Keep(k) {
			t.Error("a device is needed that no layer has")
		}
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	good := n.push("good", n.signed(), layersOf(1, 1)...)
	plain := n.push("plain", nil, layersOf(2, 1)...)
	unsigned := n.push("unsigned", &imageindex.ConvertOptions{}, layersOf(3, 1)...)
	n.convert(plain.ref, n.registry.Host+"/bound:v1", asImage())
	bound := n.look(n.registry.Host + "/bound:v1")
	star := n.look(n.registry.Put("star", indextest.EStargz(t, indextest.Files{"a": "1", "b": indextest.Noise(1, 5000)})))
	for _, tt := range []struct {
		name   string
		x      *pulled
		change func(*Options)
		with   func(*snapshots.Request)
		before func(*process)
		want   string
	}{
		{name: "signed", x: good},
		{name: "bound", x: bound},
		{name: "eStargz", x: star},
		{name: "no index", x: plain, want: NoIndex},
		{name: "untrusted", x: unsigned, want: Untrusted},
		{name: "bound, refused", x: bound, change: func(o *Options) { o.RefuseBound = true }, want: Untrusted},
		{name: "eStargz, refused", x: star, change: func(o *Options) { o.RefuseBound = true }, want: NoIndex},
		{name: "off", x: good, change: func(o *Options) { o.Off = true }, want: Off},
		{name: "no keeper", x: good, change: func(o *Options) { o.Usable = func(context.Context) error { return errTest } }, want: NoKeeper},
		{name: "keeper", x: good, change: func(o *Options) { o.Usable = func(context.Context) error { return nil } }},
		{name: "no labels", x: good, with: func(r *snapshots.Request) { r.Labels = nil }, want: NoLabels},
		{name: "another layer", x: good, with: func(r *snapshots.Request) { r.ChainID = plain.chains[0].String() }, want: OtherLayer},
		{name: "manifest is gone", x: good, with: func(r *snapshots.Request) { r.Labels[labelManifest] = plain.manifest.String() }, want: NoIndex},
		{name: "policy", x: good, change: func(o *Options) {
			o.Policy = func(context.Context) (*trust.Policy, error) { return nil, errTest }
		}, want: LocalTrouble},
		{name: "registry", x: good, change: func(o *Options) {
			o.Registry = func(context.Context, image.Ref) (*image.Source, error) { return nil, errTest }
		}, want: Unreachable},
		{name: "too late", x: good, change: func(o *Options) {
			o.Registry = func(context.Context, image.Ref) (*image.Source, error) { return nil, context.DeadlineExceeded }
		}, want: Late},
		{name: "mounts fail", x: good, before: func(p *process) {
			p.mounts.trouble.note("a", errTest)
			p.mounts.trouble.note("b", errTest)
		}, want: NoBackend},
		{name: "one mount failed", x: good, before: func(p *process) { p.mounts.trouble.note("a", errTest) }},
		{name: "disk", x: good, before: func(p *process) { p.indexes.dir += "/gone" }, want: LocalTrouble},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.t, n.dir = t, t.TempDir()
			p := n.start(tt.change)
			if tt.before != nil {
				tt.before(p)
			}
			r := tt.x.request(0)
			if tt.with != nil {
				tt.with(&r)
			}
			d := p.Layer(t.Context(), r)
			if d.Lazy != (tt.want == "") || d.Reason.Code != tt.want {
				t.Errorf("%+v, want %q", d, tt.want)
			}
			p.settled()
		})
	}
	n.t = t
}

func TestRegistryRefuses(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	for status, want := range map[int]string{http.StatusForbidden: Denied, http.StatusBadGateway: Unreachable} {
		n.registry.Fail("/manifests/", status)
		p := n.start(nil)
		if d := p.Layer(t.Context(), x.request(0)); d.Reason.Code != want {
			t.Errorf("%d: %+v", status, d.Reason)
		}
		p.end()
	}
}

func TestLookupsAreSharedAndRemembered(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", nil, layersOf(1, 1)...)
	p := n.start(nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if d := p.Layer(t.Context(), x.request(0)); d.Reason.Code != NoIndex {
				t.Errorf("reason %v", d.Reason)
			}
		})
	}
	wg.Wait()
	if got := n.opened.Load(); got != 1 {
		t.Errorf("%d lookups", got)
	}
	n.convert(x.ref, x.ref, *n.signed())
	n.pass(time.Minute - 1)
	p.Layer(t.Context(), x.request(0))
	if got := n.opened.Load(); got != 1 {
		t.Errorf("%d lookups within a minute", got)
	}
	n.pass(1)
	p.pull(x)
	p.pull(x)
	if got := n.opened.Load(); got != 2 {
		t.Errorf("%d lookups after a minute", got)
	}
	p.settled()
}

func TestPassingTroubleIsForgottenSoon(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	down := true
	p := n.start(func(o *Options) {
		o.Registry = func(ctx context.Context, ref image.Ref) (*image.Source, error) {
			if down {
				return nil, errTest
			}
			return n.open(ctx, ref)
		}
	})
	if d := p.Layer(t.Context(), x.request(0)); d.Reason.Code != Unreachable {
		t.Fatalf("reason %v", d.Reason)
	}
	down = false
	n.pass(keepPassing)
	p.pull(x)
	p.settled()
}

func TestLateLookupServesTheNext(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	release, late := make(chan struct{}), make(chan time.Time)
	p := n.start(func(o *Options) {
		o.After = func(time.Duration) <-chan time.Time { return late }
		o.Registry = func(ctx context.Context, ref image.Ref) (*image.Source, error) {
			<-release
			return n.open(ctx, ref)
		}
	})
	answers := make(chan snapshots.Decision)
	go func() { answers <- p.Layer(t.Context(), x.request(0)) }()
	late <- time.Time{}
	if d := <-answers; d.Reason.Code != Late {
		t.Errorf("reason %v", d.Reason)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if d := p.Layer(gone, x.request(0)); d.Lazy {
		t.Error("a pull that was given up has an answer")
	}
	close(release)
	p.pull(x)
	if got := n.opened.Load(); got != 1 {
		t.Errorf("%d lookups", got)
	}
	p.settled()
}

// containerd 1.6 does not say which manifest it is.
func TestLayerOfUnknownManifest(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ref := n.registry.PutIndex("multi", indextest.Index(map[string]ggcr.Image{
		"amd64": indextest.Image(t, "amd64", layersOf(1, 2)...),
		"arm64": indextest.Image(t, "arm64", layersOf(2, 2)...),
	}))
	n.convert(ref, ref, *n.signed())
	p := n.start(nil)
	for i, x := range n.platforms(ref) {
		for l := range x.chains {
			r := x.request(l)
			delete(r.Labels, labelManifest)
			d := p.Layer(t.Context(), r)
			if !d.Lazy || d.Labels[LabelManifest] != x.manifest.String() {
				t.Errorf("platform %d, layer %d: %+v", i, l, d)
			}
		}
		if got := n.opened.Load(); got != int64(i+1) {
			t.Errorf("%d lookups after platform %d", got, i)
		}
		r := x.request(0)
		delete(r.Labels, labelManifest)
		r.Labels[labelLayer] = x.manifest.String()
		r.ChainID = x.manifest.String()
		if d := p.Layer(t.Context(), r); d.Reason.Code != NoIndex {
			t.Errorf("unknown layer: %+v", d)
		}
		n.opened.Add(-1)
	}
	p.settled()
}

func TestUnusedAnswersLeaveNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 2)...)
	p := n.start(nil)
	p.ahead <- struct{}{} // nothing is mounted ahead yet
	p.ahead <- struct{}{}
	p.pull(x)
	p.Removed(t.Context(), x.chains[1].String())
	p.Removed(t.Context(), x.chains[0].String())
	<-p.ahead
	<-p.ahead
	p.settled()
	if n.kernel.count() != 0 || p.backend.did() != "" {
		t.Errorf("a removed image was mounted: %s", p.backend.did())
	}
	if n.indexFiles() != 2 {
		t.Errorf("%d indexes while the lookup counts", n.indexFiles())
	}
	// Asked again within that time, they are there.
	layers := p.pull(x)
	n.pass(keepYes)
	p.lookups.expire()
	p.mountOf(layers)
	p.Removed(t.Context(), x.chains[1].String())
	p.Removed(t.Context(), x.chains[0].String())
	if n.indexFiles() != 0 {
		t.Errorf("%d indexes are left", n.indexFiles())
	}
}

func TestMemoryOfManyPulls(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	p := n.start(nil)
	p.backend.setFail(func(string, *backend.Image) error { return context.Canceled })
	p.ahead <- struct{}{}
	p.ahead <- struct{}{}
	for i := range 2 * maxLoaded {
		p.pull(n.push(fmt.Sprintf("app%d", i), n.signed(), layersOf(uint32(i), 1)...))
	}
	p.lookups.mu.Lock()
	in := 0
	for _, o := range p.lookups.kept {
		if o.loaded != nil {
			in++
		}
	}
	p.lookups.mu.Unlock()
	if in != maxLoaded {
		t.Errorf("the indexes of %d images are in memory", in)
	}
	<-p.ahead
	<-p.ahead
	p.settled()
	if len(p.lookups.loaded) != 0 {
		t.Error("indexes stay in memory")
	}
}

func TestUsableIsAskedNowAndThen(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	asked, answer := 0, errTest
	p := n.start(func(o *Options) {
		o.Usable = func(context.Context) error { asked++; return answer }
	})
	p.Layer(t.Context(), x.request(0))
	p.Layer(t.Context(), x.request(0))
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	answer = nil
	n.pass(keepUsable)
	p.pull(x)
	if a := p.Asked(); len(a) != 1 || a[0].Reason.Code != "" {
		t.Errorf("asked %+v", a)
	}
	p.settled()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	n.pass(keepUsable)
	answer = errTest
	p.Layer(gone, x.request(0))
	answer = nil
	p.pull(x) // what a pull that was given up has seen does not count
}

func TestAskedIsBounded(t *testing.T) {
	t.Parallel()
	var a asked
	for i := range maxAsked + 10 {
		ref, err := image.Parse(fmt.Sprintf("r.example/app%d", i))
		if err != nil {
			t.Fatal(err)
		}
		a.note(request{ref: ref}, nil, no(NoIndex, ""), time.Unix(int64(i), 0))
	}
	all := a.list()
	for _, x := range all {
		if x.At.Unix() < 10 {
			t.Errorf("%s is there", x.Reference)
		}
	}
	if len(all) != maxAsked {
		t.Errorf("%d images", len(all))
	}
}

func TestParseRequest(t *testing.T) {
	t.Parallel()
	sum := "sha256:" + strings.Repeat("ab", 32)
	for _, tt := range []struct{ image, manifest, want string }{
		{image: "docker.io/library/busybox:1", want: "docker.io/library/busybox"},
		{image: "busybox", want: "docker.io/library/busybox"},
		{image: "team/app:v1", want: "docker.io/team/app"},
		{image: "localhost/app", want: "localhost/app"},
		{image: "r.example:5000/a/b@" + sum, want: "r.example:5000/a/b"},
		{image: "r.example/a/b:tag@" + sum, want: "r.example/a/b"},
		{image: "usr", want: "docker.io/library/usr"}, // not the directory
		{image: "", want: "does not say which image"},
		{image: sum, want: "not in a registry"},
		{image: "/etc", want: "not in a registry"},
		{image: "../etc", want: "not in a registry"},
		{image: "oci:/etc/x", want: "not in a registry"},
		{image: "docker-archive:/etc/passwd", want: "not in a registry"},
		{image: "docker://r.example/app", want: "without docker://"},
		{image: "r.example/App", want: "lower case"},
		{image: "r.example/a/../b", want: "reference"},
		{image: strings.Repeat("a/", 5000), want: "reference"},
		{image: "r.example/app\n", want: "reference"},
		{image: "r.example/app", manifest: "sha256:no", want: "label"},
		{image: "r.example/app", manifest: "sha512:" + strings.Repeat("ab", 64), want: "not supported"},
	} {
		r, err := parseRequest(sum, map[string]string{labelImage: tt.image, labelManifest: tt.manifest})
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = repository(r.ref)
		}
		if err == nil && got != tt.want || !strings.Contains(got, tt.want) || len(got) > 1000 {
			t.Errorf("%.50q: %.300s, want %s", tt.image, got, tt.want)
		}
	}
}
