package image

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// dockerRegistry is the docker-registry of Debian, distribution 2.8.
type dockerRegistry struct {
	config, addr string
}

func newDockerRegistry(t *testing.T) *dockerRegistry {
	t.Helper()
	testenv.Integration(t)
	testenv.Tool(t, "docker-registry")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	dir := t.TempDir()
	r := &dockerRegistry{config: filepath.Join(dir, "config.yml"), addr: l.Addr().String()}
	must(t, l.Close())
	write(t, r.config, fmt.Sprintf("version: 0.1\nlog: {accesslog: {disabled: true}, level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %q, secret: s}\n",
		filepath.Join(dir, "data"), r.addr))
	return r
}

// start runs the registry until stop, or the end of the test.
func (r *dockerRegistry) start(t *testing.T) (stop func()) {
	t.Helper()
	cmd := exec.Command("docker-registry", "serve", r.config)
	must(t, cmd.Start())
	var once sync.Once
	stop = func() {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
			_ = cmd.Wait()                          // ended by the signal
		})
	}
	t.Cleanup(stop)
	testenv.Eventually(t, func() bool {
		resp, err := http.Get("http://" + r.addr + "/v2/")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, "docker-registry answers")
	return stop
}

func (r *dockerRegistry) ref(t *testing.T, suffix string) Ref {
	t.Helper()
	return parse(t, r.addr+"/"+suffix)
}

// TestGarbageCollection pushes an image and what refers to it, and collects
// garbage: distribution 2.8 knows no subjects and deletes what has no tag.
func TestGarbageCollection(t *testing.T) {
	r := newDockerRegistry(t)
	stop := r.start(t)
	f := newFixture(t)
	target := openTarget(t, r.ref(t, "team/app"), pushOptions())
	// Not the index: what an index lists is deleted, too.
	pushAll(t, target, f.blobs, f.amd, "v1")
	data := f.add("application/vnd.example.data", noise(50, 3*piece))
	one := f.artifact(t, testType, f.amd, data)
	two := f.artifact(t, testType, f.amd, f.add("application/vnd.example.data", noise(51, 10)))
	attach(t, target, f.blobs, one, "v1.one")
	attach(t, target, f.blobs, two, "v1.two")
	garbage := BytesBlob("", noise(52, 10))
	if _, err := target.PushBlob(t.Context(), garbage); err != nil {
		t.Fatal(err)
	}
	stop()
	out, err := exec.CommandContext(t.Context(), "docker-registry", "garbage-collect", "-m", r.config).CombinedOutput()
	if err != nil {
		t.Fatalf("garbage-collect: %v\n%s", err, out)
	}
	r.start(t)

	target = openTarget(t, r.ref(t, "team/app"), pushOptions())
	if has, err := target.HasBlob(t.Context(), garbage.Descriptor); err != nil || has {
		t.Errorf("nothing was collected: %v, %v\n%s", has, err, out)
	}
	s := open(t, r.ref(t, "team/app:v1"), testOptions())
	list, err := s.Referrers(t.Context(), f.amd.Digest, testType)
	if err != nil || !slices.Equal(sorted(digests(list)), sorted([]digest.Digest{one.Digest, two.Digest})) {
		t.Fatalf("referrers %v, %v", list, err)
	}
	for _, desc := range list {
		if _, _, err := s.Manifest(t.Context(), desc.Digest.String()); err != nil {
			t.Error(err)
		}
	}
	rd, err := s.Blob(t.Context(), data)
	must(t, err)
	if _, err := io.Copy(io.Discard, rd); err != nil {
		t.Error(err)
	}
	must(t, rd.Close())
	checkImage(t, f, images(t, s)[0], f.amd)
}

// TestDockerRegistry pushes through connections that break, mounts, and reads
// again.
func TestDockerRegistry(t *testing.T) {
	r := newDockerRegistry(t)
	r.start(t)
	upstream, err := url.Parse("http://" + r.addr)
	must(t, err)
	var patches, sent atomic.Int64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(upstream)
			p.Out.Host = p.In.Host // Locations are to lead here
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPatch && patches.Add(1) == 3 {
			req.Body = io.NopCloser(io.MultiReader(io.LimitReader(req.Body, 1000), errReader{}))
		}
		body := &countingReader{ReadCloser: req.Body, n: &sent}
		req.Body = body
		proxy.ServeHTTP(w, req)
	}))
	defer front.Close()
	ref := parse(t, strings.TrimPrefix(front.URL, "http://")+"/team/app")
	o := pushOptions()
	o.Backoff, o.After = nil, nil // the registry needs time to see that the connection is gone
	target := openTarget(t, ref, o)
	b := BytesBlob("application/octet-stream", noise(1, 6*piece))
	if how, err := target.PushBlob(t.Context(), b); err != nil || how != Uploaded {
		t.Fatalf("%v, %v", how, err)
	}
	t.Logf("%d pieces and %d bytes sent for a blob of %d", patches.Load(), sent.Load(), b.Descriptor.Size)
	rd, err := open(t, ref, testOptions()).Blob(t.Context(), b.Descriptor)
	must(t, err)
	if _, err := io.Copy(io.Discard, rd); err != nil {
		t.Error(err)
	}
	must(t, rd.Close())
	other := openTarget(t, r.ref(t, "team/other"), pushOptions())
	b.MountFrom = []string{"team/app"}
	if how, err := other.PushBlob(t.Context(), b); err != nil || how != Mounted {
		t.Errorf("%v, %v", how, err)
	}
	wrong := BytesBlob("", noise(9, 100))
	wrong.Descriptor.Digest = someDigest
	if _, err := other.PushBlob(t.Context(), wrong); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong digest: %v", err)
	}
}

type countingReader struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// TestSkopeo has skopeo read what we write, and the other way round.
func TestSkopeo(t *testing.T) {
	testenv.Integration(t)
	skopeo := testenv.Tool(t, "skopeo")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), skopeo, args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %q: %v\n%s", args, err, out)
		}
	}
	b := blobs{}
	layer := tarOf(t, member{name: "etc/hello", content: "x"})
	desc := b.image(t, "amd64", layer)
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours")
	target := openTarget(t, parse(t, "oci:"+ours), testOptions())
	pushAll(t, target, b, desc, "v1")
	attach(t, target, b, b.artifact(t, testType, desc), "v1.index")

	theirs := filepath.Join(dir, "theirs")
	run("copy", "oci:"+ours+":v1", "oci:"+theirs+":v1")
	img := images(t, open(t, parse(t, "oci:"+theirs+":v1"), testOptions()))[0]
	if img.Descriptor.Digest != desc.Digest {
		t.Errorf("copied %s, want %s", img.Descriptor.Digest, desc.Digest)
	}
	for _, transport := range []string{"docker-archive", "oci-archive"} {
		file := filepath.Join(dir, transport+".tar")
		run("copy", "oci:"+ours+":v1", transport+":"+file+":x:v1")
		img := images(t, open(t, parse(t, "docker-archive:"+file), testOptions()))[0]
		if len(img.Layers) != 1 || img.Layers[0].DiffID != digest.FromBytes(layer) {
			t.Errorf("%s: %+v", transport, img.Layers)
		}
		checkLayers(t, img)
	}
}
