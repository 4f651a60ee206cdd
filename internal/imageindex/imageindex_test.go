package imageindex_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// shelf is a registry of the test's.
type shelf struct {
	t    *testing.T
	host string
	// uploaded counts the bytes of blobs that clients sent.
	uploaded atomic.Int64
}

func newShelf(t *testing.T, referrers bool) *shelf {
	t.Helper()
	s := &shelf{t: t}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(referrers))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/uploads") {
			r.Body = &counted{r.Body, &s.uploaded}
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.host = strings.TrimPrefix(srv.URL, "http://")
	return s
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// files are the entries of a layer: content by path; a path that ends in "/"
// is a directory.
type files map[string]string

func layerOf(t *testing.T, f files) ggcr.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, path := range slices.Sorted(maps.Keys(f)) {
		data := f[path]
		h := &tar.Header{Name: path, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(path, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t *testing.T, arch string, layers ...files) ggcr.Image {
	t.Helper()
	img := empty.Image
	for _, f := range layers {
		var err error
		if img, err = mutate.AppendLayers(img, layerOf(t, f)); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// put pushes an image and returns its reference.
func (s *shelf) put(repo string, img ggcr.Image) image.Ref {
	s.t.Helper()
	tag, err := name.NewTag(s.host+"/"+repo, name.Insecure)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		s.t.Fatal(err)
	}
	return parse(s.t, tag.String())
}

func parse(t *testing.T, s string) image.Ref {
	t.Helper()
	ref, err := image.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func open(t *testing.T, ref image.Ref) *image.Source {
	t.Helper()
	src, err := image.Open(t.Context(), ref, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

func newKey(t *testing.T) *trust.PrivateKey {
	t.Helper()
	key, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func trusting(t *testing.T, keys ...*trust.PrivateKey) *trust.Policy {
	t.Helper()
	var public []trust.PublicKey
	for _, k := range keys {
		public = append(public, k.Public())
	}
	p, err := (*trust.Policy)(nil).With(public...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func convert(t *testing.T, from, to image.Ref, o imageindex.ConvertOptions) []*imageindex.Converted {
	t.Helper()
	o.Dir = t.TempDir()
	all, err := imageindex.Convert(t.Context(), open(t, from), to, o)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func first([]v1.Platform) (int, error) { return 0, nil }

// find resolves an image and asks for its index.
func find(t *testing.T, ref image.Ref, p *trust.Policy) (*image.Source, *imageindex.Found, error) {
	t.Helper()
	src := open(t, ref)
	r, err := imageindex.Resolve(t.Context(), src, first)
	if err != nil {
		t.Fatal(err)
	}
	f, err := imageindex.Find(t.Context(), src, r, p)
	return src, f, err
}

// checkContent loads an index, recomputes its roots, and reads every file.
func checkContent(t *testing.T, ref image.Ref, p *trust.Policy, want files) *imageindex.Loaded {
	t.Helper()
	src, f, err := find(t, ref, p)
	if err != nil {
		t.Fatal(err)
	}
	l, err := imageindex.Load(t.Context(), src, f, chunkfmt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range l.Indexes {
		if err := merkle.Check(x); err != nil {
			t.Error(err)
		}
	}
	tree, err := l.Merge(len(l.Indexes))
	if err != nil {
		t.Fatal(err)
	}
	if root := merkle.Root(tree); root != f.Artifact.Root {
		t.Errorf("root %s, the artifact says %s", root, f.Artifact.Root)
	}
	reader := content.NewReader(tree, imageindex.Stored{Source: src}, content.Options{})
	got := files{}
	for path, inode := range tree.Walk() {
		if tree.Kind(inode) != chunkfmt.File {
			continue
		}
		r, err := reader.Open(t.Context(), inode)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[path] = string(data)
	}
	for path, data := range want {
		if got[path] != data {
			t.Errorf("%s has %d bytes, want %d", path, len(got[path]), len(data))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	return l
}

// noise is content that does not compress away.
func noise(seed, n int) string {
	p := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x)
	}
	return string(p)
}

func layersV1() (all []files, merged files) {
	big, other := noise(1, 700_000), noise(2, 300_000)
	return []files{
			{"etc/": "", "etc/motd": "hello", "lib/big": big, "gone": noise(3, 9000)},
			{".wh.gone": "", "lib/other": other, "etc/motd": "changed"},
		}, files{
			"etc/motd": "changed", "lib/big": big, "lib/other": other,
		}
}

func TestConvertFindLoad(t *testing.T) {
	for what, referrers := range map[string]bool{"referrers API": true, "fallback tag": false} {
		t.Run(what, func(t *testing.T) {
			s, key := newShelf(t, referrers), newKey(t)
			layers, merged := layersV1()
			ref := s.put("app", imageOf(t, "amd64", layers...))
			c := convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
			if len(c) != 1 || c[0].SignedBy != key.ID() || c[0].Bound || c[0].SentBytes < 1_000_000 {
				t.Errorf("converted %+v", c[0])
			}
			l := checkContent(t, ref, trusting(t, newKey(t), key), merged)
			if l.Verdict.Reason != trust.Signed || l.Verdict.Key != key.ID() {
				t.Errorf("verdict %v", l.Verdict)
			}
			again := s.uploaded.Load()
			c = convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
			if c[0].SentBytes != 0 || s.uploaded.Load() != again {
				t.Errorf("the second time %d bytes were sent", s.uploaded.Load()-again)
			}
		})
	}
}

func TestFindSaysWhy(t *testing.T) {
	s, key := newShelf(t, true), newKey(t)
	layers, _ := layersV1()
	ref := s.put("app", imageOf(t, "amd64", layers...))
	if _, _, err := find(t, ref, trusting(t, key)); !errors.Is(err, imageindex.ErrNoIndex) {
		t.Errorf("without an index: %v", err)
	}
	convert(t, ref, ref, imageindex.ConvertOptions{})
	if _, _, err := find(t, ref, trusting(t, key)); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("unsigned: %v", err)
	}
	convert(t, ref, ref, imageindex.ConvertOptions{Key: newKey(t)})
	if _, _, err := find(t, ref, trusting(t, key)); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("signed by another key: %v", err)
	}
	src := open(t, ref)
	r, err := imageindex.Resolve(t.Context(), src, first)
	if err != nil {
		t.Fatal(err)
	}
	f, err := imageindex.FindAny(t.Context(), src, r, nil)
	if err != nil || f.Artifact == nil || !errors.Is(f.Untrusted, trust.ErrUntrusted) {
		t.Errorf("found %+v, %v", f, err)
	}
}

func TestConvertAsImage(t *testing.T) {
	s := newShelf(t, true)
	layers, merged := layersV1()
	ref := s.put("app", imageOf(t, "amd64", layers...))
	to := parse(t, s.host+"/lazy:v1")
	convert(t, ref, to, imageindex.ConvertOptions{AsImage: true, Build: build.Options{Mode: build.AsImage}})
	l := checkContent(t, to, nil, merged)
	if l.Verdict.Reason != trust.Bound {
		t.Errorf("verdict %v", l.Verdict)
	}
	if len(l.Artifact.Blobs) != 0 {
		t.Errorf("the artifact has %d blobs besides the layers", len(l.Artifact.Blobs))
	}
	for _, layer := range l.Subject.Layers {
		if layer.MediaType != v1.MediaTypeImageLayerZstd {
			t.Errorf("layer of type %s", layer.MediaType)
		}
	}
}

func TestDictionaryIsMountedNotCopied(t *testing.T) {
	s, key := newShelf(t, true), newKey(t)
	layers, merged := layersV1()
	v1ref := s.put("app/v1", imageOf(t, "amd64", layers...))
	convert(t, v1ref, v1ref, imageindex.ConvertOptions{Key: key})
	added := noise(9, 50_000)
	layers[1]["lib/new"], merged["lib/new"] = added, added
	v2ref := s.put("app/v2", imageOf(t, "amd64", layers...))
	dictionary, f, err := find(t, v1ref, trusting(t, key))
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := imageindex.Load(t.Context(), dictionary, f, chunkfmt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	c := convert(t, v2ref, v2ref, imageindex.ConvertOptions{Key: key, Dictionary: func(context.Context, v1.Platform) (*imageindex.Loaded, error) { return loaded, nil }, DictionarySource: dictionary})
	if c[0].BlobBytes > 52_000 || c[0].SentBytes > 60_000 {
		t.Errorf("%d bytes of blobs, %d sent, for 50,000 new ones", c[0].BlobBytes, c[0].SentBytes)
	}
	checkContent(t, v2ref, trusting(t, key), merged)
}

func TestLayoutStandsAlone(t *testing.T) {
	s, key := newShelf(t, true), newKey(t)
	layers, merged := layersV1()
	ref := s.put("app", imageOf(t, "amd64", layers...))
	to := parse(t, "oci:"+filepath.Join(t.TempDir(), "layout")+":app")
	convert(t, ref, to, imageindex.ConvertOptions{Key: key})
	checkContent(t, to, trusting(t, key), merged)
}

func TestPlatforms(t *testing.T) {
	s, key := newShelf(t, true), newKey(t)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: imageOf(t, "amd64", files{"a": noise(1, 5000)}), Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: imageOf(t, "arm64", files{"b": noise(2, 5000)}), Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: "arm64"}}},
	)
	tag, err := name.NewTag(s.host+"/multi", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	ref := parse(t, tag.String())
	c := convert(t, ref, ref, imageindex.ConvertOptions{Key: key, Tag: "idx"})
	if len(c) != 2 || c[0].Tag != "idx-linux-amd64" || c[1].Tag != "idx-linux-arm64" {
		t.Fatalf("converted %+v", c)
	}
	checkContent(t, ref.WithTag("idx-linux-arm64"), trusting(t, key), files{"b": noise(2, 5000)})

	lazy := parse(t, s.host+"/lazy:both")
	convert(t, ref, lazy, imageindex.ConvertOptions{AsImage: true, Build: build.Options{Mode: build.AsImage}})
	images, err := open(t, lazy).Images(t.Context())
	if err != nil || len(images) != 2 {
		t.Fatalf("%d images, %v", len(images), err)
	}
}

func TestLoadRefusesAnotherLayersIndex(t *testing.T) {
	s, key := newShelf(t, true), newKey(t)
	layers, _ := layersV1()
	ref := s.put("app", imageOf(t, "amd64", layers...))
	convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
	src, f, err := find(t, ref, trusting(t, key))
	if err != nil {
		t.Fatal(err)
	}
	f.Artifact.Layers[0].Index, f.Artifact.Layers[1].Index = f.Artifact.Layers[1].Index, f.Artifact.Layers[0].Index
	if _, err := imageindex.Load(t.Context(), src, f, chunkfmt.Limits{}); !errors.Is(err, artifact.ErrMismatch) {
		t.Errorf("swapped indexes: %v", err)
	}
}

func TestConvertEndsWithItsContext(t *testing.T) {
	s := newShelf(t, true)
	layers, _ := layersV1()
	ref := s.put("app", imageOf(t, "amd64", layers...))
	ctx, cancel := context.WithCancel(t.Context())
	o := imageindex.ConvertOptions{Dir: t.TempDir(), Progress: func(imageindex.Progress) { cancel() }}
	if _, err := imageindex.Convert(ctx, open(t, ref), ref, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, _, err := find(t, ref, nil); !errors.Is(err, imageindex.ErrNoIndex) {
		t.Errorf("after that: %v", err)
	}
}
