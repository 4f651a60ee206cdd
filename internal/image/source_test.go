package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// fixture is an index with two images, an attestation and an index within.
type fixture struct {
	blobs
	contents [][]byte
	amd, arm v1.Descriptor
	index    v1.Descriptor
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{blobs: blobs{}, contents: [][]byte{noise(1, 300_000), noise(2, 10), {}}}
	f.amd = f.image(t, "amd64", f.contents...)
	f.arm = f.image(t, "arm64", f.contents[1])
	statement := f.artifact(t, "application/vnd.example.statement", f.amd)
	statement.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	f.index = f.blobs.index(t, f.amd, statement, f.blobs.index(t, f.arm))
	return f
}

// checkImage reads an image of the fixture in every way.
func checkImage(t *testing.T, f *fixture, img *Image, want v1.Descriptor) {
	t.Helper()
	if img.Descriptor.Digest != want.Digest || img.Descriptor.Size != want.Size || !bytes.Equal(img.Manifest, f.blobs[want.Digest]) {
		t.Fatalf("image %+v, want %+v", img.Descriptor, want)
	}
	if got, want := FormatPlatform(img.Platform), FormatPlatform(*want.Platform); got != want {
		t.Errorf("platform %s, want %s", got, want)
	}
	checkLayers(t, img)
}

// checkLayers reads all layers in every way.
func checkLayers(t *testing.T, img *Image) {
	t.Helper()
	ctx := t.Context()
	for i := range img.Layers {
		l := &img.Layers[i]
		data, err := readAll(ctx, l.Open)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if digest.FromBytes(data) != l.Descriptor.Digest {
			t.Fatalf("layer %d: wrong content", i)
		}
		for _, span := range [][2]int{{0, len(data)}, {0, 1}, {len(data) / 2, len(data) - len(data)/2}, {len(data) - 1, 1}} {
			p := make([]byte, span[1])
			if n, err := l.ReadAt(ctx, p, int64(span[0])); err != nil || n != len(p) || !bytes.Equal(p, data[span[0]:span[0]+span[1]]) {
				t.Errorf("layer %d: ReadAt %d bytes at %d: %d, %v", i, span[1], span[0], n, err)
			}
		}
		p := make([]byte, 20)
		if n, err := l.ReadAt(ctx, p, int64(len(data)-5)); n != 5 || !errors.Is(err, io.EOF) {
			t.Errorf("layer %d: ReadAt beyond the end: %d, %v", i, n, err)
		}
		if n, err := l.ReadAt(ctx, p, int64(len(data))); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("layer %d: ReadAt at the end: %d, %v", i, n, err)
		}
		if _, err := l.ReadAt(ctx, p, -1); err == nil {
			t.Errorf("layer %d: ReadAt before the beginning", i)
		}
	}
}

// eachSource runs a test on the fixture in a registry and in an OCI layout.
func eachSource(t *testing.T, test func(t *testing.T, f *fixture, open func(t *testing.T, suffix string, o Options) *Source)) {
	f := newFixture(t)
	t.Run("registry", func(t *testing.T) {
		r := newRegistry(t, registry.WithReferrersSupport(true))
		r.put(t, "a/b", "v1", f.blobs, f.index)
		r.put(t, "a/b", "one", f.blobs, f.amd)
		test(t, f, func(t *testing.T, suffix string, o Options) *Source { return open(t, r.ref(t, "a/b"+suffix), o) })
	})
	t.Run("layout", func(t *testing.T) {
		dir := f.layout(t, named(f.index, "v1"), named(f.amd, "one"), f.artifact(t, "application/vnd.example.other", f.arm))
		test(t, f, func(t *testing.T, suffix string, o Options) *Source { return open(t, parse(t, "oci:"+dir+suffix), o) })
	})
}

func TestImages(t *testing.T) {
	eachSource(t, func(t *testing.T, f *fixture, open func(*testing.T, string, Options) *Source) {
		list := images(t, open(t, ":v1", testOptions()))
		if len(list) != 2 {
			t.Fatalf("%d images, want 2", len(list))
		}
		checkImage(t, f, list[0], f.amd)
		checkImage(t, f, list[1], f.arm)
		if got := list[0].Layers[0].DiffID; got != digest.FromBytes(f.contents[0]) {
			t.Errorf("diff ID %s", got)
		}
		for _, suffix := range []string{":one", "@" + f.amd.Digest.String()} {
			list = images(t, open(t, suffix, testOptions()))
			if len(list) != 1 {
				t.Fatalf("%s: %d images, want 1", suffix, len(list))
			}
			checkImage(t, f, list[0], f.amd)
		}
	})
}

func TestPlatformFilter(t *testing.T) {
	eachSource(t, func(t *testing.T, f *fixture, open func(*testing.T, string, Options) *Source) {
		o := testOptions()
		o.Platforms = []v1.Platform{{OS: "linux", Architecture: "aarch64", Variant: "v8"}}
		list := images(t, open(t, ":v1", o))
		if len(list) != 1 {
			t.Fatalf("%d images, want 1", len(list))
		}
		checkImage(t, f, list[0], f.arm)

		o.Platforms = []v1.Platform{{OS: "linux", Architecture: "s390x"}}
		_, err := open(t, ":v1", o).Images(t.Context())
		if !errors.Is(err, ErrNoPlatform) || !strings.Contains(err.Error(), "linux/amd64, linux/arm64") {
			t.Errorf("no platform: %v", err)
		}
	})
}

func TestAbsent(t *testing.T) {
	eachSource(t, func(t *testing.T, _ *fixture, open func(*testing.T, string, Options) *Source) {
		ctx := t.Context()
		if _, err := open(t, ":none", testOptions()).Images(ctx); !errors.Is(err, ErrNotFound) {
			t.Errorf("absent tag: %v", err)
		}
		if _, err := open(t, "@"+someDigest.String(), testOptions()).Images(ctx); !errors.Is(err, ErrNotFound) {
			t.Errorf("absent manifest: %v", err)
		}
		if _, err := open(t, ":v1", testOptions()).Blob(ctx, v1.Descriptor{Digest: someDigest, Size: 3}); !errors.Is(err, ErrNotFound) {
			t.Errorf("absent blob: %v", err)
		}
		list, err := open(t, ":v1", testOptions()).Referrers(ctx, someDigest, "")
		if err != nil || len(list) != 0 {
			t.Errorf("no referrers: %v, %v", list, err)
		}
	})
}

func TestReferrers(t *testing.T) {
	eachSource(t, func(t *testing.T, f *fixture, open func(*testing.T, string, Options) *Source) {
		s := open(t, ":v1", testOptions())
		for artifactType, want := range map[string]int{"": 1, "application/vnd.example.statement": 1, "application/vnd.example.nothing": 0} {
			list, err := s.Referrers(t.Context(), f.amd.Digest, artifactType)
			if err != nil || len(list) != want {
				t.Errorf("referrers of type %q: %+v, %v; want %d", artifactType, list, err, want)
			}
			for _, desc := range list {
				if desc.ArtifactType != "application/vnd.example.statement" {
					t.Errorf("artifact type %q", desc.ArtifactType)
				}
				if data, got, err := s.Manifest(t.Context(), desc.Digest.String()); err != nil || got.Size != desc.Size || digest.FromBytes(data) != desc.Digest {
					t.Errorf("read referrer: %+v, %v", got, err)
				}
			}
		}
	})
}

func TestBrokenConnectionIsResumed(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	img := images(t, open(t, r.ref(t, "a:v1"), testOptions()))[0]
	l := img.Layers[0]
	whole := f.blobs[l.Descriptor.Digest]
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		first, end := span(t, req.Header.Get("Range"), len(whole))
		w.Header().Set("Content-Range", contentRange(first, end, len(whole)))
		w.Header().Set("Content-Length", itoa(end-first))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(whole[first:min(end, first+70_000)]) // and the connection is closed
		return true
	})
	data, err := readAll(t.Context(), l.Open)
	if err != nil || !bytes.Equal(data, whole) {
		t.Fatalf("read %d bytes: %v", len(data), err)
	}
	if got, want := len(r.requests("/blobs/")), (len(whole)+69_999)/70_000; got != want {
		t.Errorf("%d requests, want %d: %q", got, want, r.requests("/blobs/"))
	}
}

// serveBlobs answers requests for blobs alone.
func serveBlobs(answer func(w http.ResponseWriter, req *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		answer(w, req)
		return true
	}
}

func TestBadBlobs(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	l := images(t, open(t, r.ref(t, "a:v1"), testOptions()))[0].Layers[0]
	whole := f.blobs[l.Descriptor.Digest]
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, tc := range map[string]struct {
		content []byte
		want    error
		text    string
	}{
		"flipped bit": {flipped, ErrCorrupt, "digest"},
		"truncated":   {whole[:len(whole)-1], ErrCorrupt, "its descriptor says"},
		"longer":      {append(bytes.Clone(whole), 0), ErrCorrupt, "its descriptor says"},
		"empty":       {nil, ErrCorrupt, "its descriptor says"},
	} {
		t.Run(name, func(t *testing.T) {
			r.setFault(serveBlobs(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", itoa(len(tc.content)))
				_, _ = w.Write(tc.content)
			}))
			_, err := readAll(t.Context(), l.Open)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), l.Descriptor.Digest.String()) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestRegistryWithoutRanges(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	img := images(t, open(t, r.ref(t, "a:v1"), testOptions()))[0]
	r.setFault(func(_ http.ResponseWriter, req *http.Request) bool {
		req.Header.Del("Range")
		return false
	})
	checkLayers(t, img)
}

func TestUnreachableIsNotAbsent(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	s := open(t, r.ref(t, "a:v1"), testOptions())
	for status, denied := range map[int]bool{500: false, 503: false, 403: true, 401: true} {
		r.setFault(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			return true
		})
		_, ierr := s.Images(t.Context())
		_, rerr := s.Referrers(t.Context(), f.amd.Digest, "")
		_, berr := s.Blob(t.Context(), v1.Descriptor{Digest: someDigest, Size: 3})
		for _, err := range []error{ierr, rerr, berr} {
			se := (*origin.StatusError)(nil)
			if !errors.As(err, &se) || se.Status != status || errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) != denied {
				t.Errorf("status %d: %v", status, err)
			}
			if denied && !strings.Contains(err.Error(), "no permission to pull from "+s.Ref().Registry+"/a: log in with docker login") {
				t.Errorf("no advice in %v", err)
			}
		}
	}
	r.Close()
	if _, err := s.Images(t.Context()); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("closed registry: %v", err)
	}
	if _, err := Open(t.Context(), s.Ref(), testOptions()); err == nil || !strings.Contains(err.Error(), "log in to registry") {
		t.Errorf("closed registry: %v", err)
	}
}

func TestContextEndsAStalledRead(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	l := images(t, open(t, r.ref(t, "a:v1"), testOptions()))[0].Layers[0]
	whole := f.blobs[l.Descriptor.Digest]
	ctx, cancel := context.WithCancel(t.Context())
	stalled := make(chan struct{})
	defer close(stalled)
	r.setFault(serveBlobs(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", itoa(len(whole)))
		_, _ = w.Write(whole[:1000])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-stalled:
		case <-req.Context().Done():
		}
	}))
	rd, err := l.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if _, err := io.ReadFull(rd, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(rd); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestReferrersWithoutAPI(t *testing.T) {
	f := newFixture(t)
	one := f.artifact(t, "application/vnd.example.one", f.arm)
	two := f.artifact(t, "application/vnd.example.two", f.arm)
	one.ArtifactType, two.ArtifactType = "application/vnd.example.one", "application/vnd.example.two"
	list := f.blobs.index(t, one, two, one)
	for name, fault := range map[string]func(w http.ResponseWriter, req *http.Request){
		"404":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"405":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"a web page": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>Welcome</html>") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			r.put(t, "a", fallbackTag(f.arm.Digest), f.blobs, list)
			r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, "/referrers/") {
					fault(w, req)
					return true
				}
				return false
			})
			s := open(t, r.ref(t, "a"), testOptions())
			for artifactType, want := range map[string][]digest.Digest{
				"": {one.Digest, two.Digest}, "application/vnd.example.two": {two.Digest}, "application/vnd.example": nil,
			} {
				got, err := s.Referrers(t.Context(), f.arm.Digest, artifactType)
				if err != nil || !slices.Equal(digests(got), want) {
					t.Errorf("type %q: %v, %v; want %v", artifactType, got, err, want)
				}
			}
			if got, err := s.Referrers(t.Context(), someDigest, ""); err != nil || len(got) != 0 {
				t.Errorf("of nothing: %v, %v", got, err)
			}
		})
	}
}

func digests(list []v1.Descriptor) []digest.Digest {
	var out []digest.Digest
	for _, desc := range list {
		out = append(out, desc.Digest)
	}
	return out
}

// TestReferrerPages has a server with pages that ignores the filter.
func TestReferrerPages(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	s := open(t, r.ref(t, "a"), testOptions())
	next := "</v2/a/referrers/" + f.amd.Digest.String() + `?last=1>; rel="next"`
	entry := func(artifactType string, seed uint64) v1.Descriptor {
		return v1.Descriptor{MediaType: v1.MediaTypeImageManifest, ArtifactType: artifactType, Digest: digest.FromBytes(noise(seed, 9)), Size: 9}
	}
	pages := [][]byte{
		blobs{}.page(t, entry("x", 1), entry("y", 2)),
		blobs{}.page(t, entry("y", 3), entry("x", 4)),
	}
	serve := func(link string) {
		r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/referrers/") {
				return false
			}
			w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
			if req.URL.Query().Get("last") == "" {
				w.Header().Set("Link", link)
				_, _ = w.Write(pages[0])
			} else {
				_, _ = w.Write(pages[1])
			}
			return true
		})
	}
	serve(next)
	got, err := s.Referrers(t.Context(), f.amd.Digest, "x")
	if err != nil || !slices.Equal(digests(got), []digest.Digest{digest.FromBytes(noise(1, 9)), digest.FromBytes(noise(4, 9))}) {
		t.Errorf("%v, %v", got, err)
	}
	serve(`<http://127.0.0.1:1/v2/a/referrers/x>; rel="next"`)
	if _, err := s.Referrers(t.Context(), f.amd.Digest, "x"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("next page on another server: %v", err)
	}
}

func (b blobs) page(t *testing.T, list ...v1.Descriptor) []byte {
	t.Helper()
	return b[b.index(t, list...).Digest]
}
