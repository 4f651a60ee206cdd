package imageindex_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

type files = indextest.Files

var noise = indextest.Noise

// put pushes an image and returns its reference.
func put(t *testing.T, s *indextest.Registry, repo string, img ggcr.Image) image.Ref {
	t.Helper()
	return parse(t, s.Put(repo, img))
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
	tree, err := l.Merge(len(l.Indexes))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Check(tree); err != nil {
		t.Error(err)
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
	t.Parallel()
	for what, referrers := range map[string]bool{"referrers API": true, "fallback tag": false} {
		t.Run(what, func(t *testing.T) {
			s, key := indextest.NewRegistry(t, referrers), newKey(t)
			layers, merged := layersV1()
			ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
			c := convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
			if len(c) != 1 || c[0].SignedBy != key.ID() || c[0].Bound || c[0].SentBytes < 1_000_000 {
				t.Errorf("converted %+v", c[0])
			}
			l := checkContent(t, ref, trusting(t, newKey(t), key), merged)
			if l.Verdict.Reason != trust.Signed || l.Verdict.Key != key.ID() {
				t.Errorf("verdict %v", l.Verdict)
			}
			again := s.Uploaded()
			c = convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
			if c[0].SentBytes != 0 || s.Uploaded() != again {
				t.Errorf("the second time %d bytes were sent", s.Uploaded()-again)
			}
		})
	}
}

func TestFindSaysWhy(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, _ := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
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
	t.Parallel()
	s := indextest.NewRegistry(t, true)
	layers, merged := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	to := parse(t, s.Host+"/lazy:v1")
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
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	v1ref := put(t, s, "app/v1", indextest.Image(t, "amd64", layers...))
	convert(t, v1ref, v1ref, imageindex.ConvertOptions{Key: key})
	added := noise(9, 50_000)
	layers[1]["lib/new"], merged["lib/new"] = added, added
	v2ref := put(t, s, "app/v2", indextest.Image(t, "amd64", layers...))
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
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	to := parse(t, "oci:"+filepath.Join(t.TempDir(), "layout")+":app")
	convert(t, ref, to, imageindex.ConvertOptions{Key: key})
	checkContent(t, to, trusting(t, key), merged)
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	ref := parse(t, s.PutIndex("multi", indextest.Index(map[string]ggcr.Image{
		"amd64": indextest.Image(t, "amd64", files{"a": noise(1, 5000)}),
		"arm64": indextest.Image(t, "arm64", files{"b": noise(2, 5000)}),
	})))
	c := convert(t, ref, ref, imageindex.ConvertOptions{Key: key, Tag: "idx"})
	if len(c) != 2 || c[0].Tag != "idx-linux-amd64" || c[1].Tag != "idx-linux-arm64" {
		t.Fatalf("converted %+v", c)
	}
	checkContent(t, ref.WithTag("idx-linux-arm64"), trusting(t, key), files{"b": noise(2, 5000)})

	lazy := parse(t, s.Host+"/lazy:both")
	convert(t, ref, lazy, imageindex.ConvertOptions{AsImage: true, Build: build.Options{Mode: build.AsImage}})
	images, err := open(t, lazy).Images(t.Context())
	if err != nil || len(images) != 2 {
		t.Fatalf("%d images, %v", len(images), err)
	}
}

func TestConvertEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := indextest.NewRegistry(t, true)
	layers, _ := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	ctx, cancel := context.WithCancel(t.Context())
	o := imageindex.ConvertOptions{Dir: t.TempDir(), Progress: func(imageindex.Progress) { cancel() }}
	if _, err := imageindex.Convert(ctx, open(t, ref), ref, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, _, err := find(t, ref, nil); !errors.Is(err, imageindex.ErrNoIndex) {
		t.Errorf("after that: %v", err)
	}
}
