package imageindex_test

import (
	"errors"
	"path/filepath"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

func TestConvertRefusesTags(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, _ := layersV1()
	ref := put(t, s, "app:v1", indextest.Image(t, "amd64", layers...))
	put(t, s, "other:v1", indextest.Image(t, "amd64", files{"x": "y"}))
	layout := filepath.Join(t.TempDir(), "layout")
	for _, tt := range []struct {
		from, to image.Ref
		tag      string
		want     error
	}{
		{ref, ref, "v1", imageindex.ErrTaken},
		{ref, parse(t, s.Host+"/other:v1"), "", imageindex.ErrTaken},
		{ref, ref, "idx", nil},
		{ref, ref, "idx", nil}, // it is an index's: replaced
		{ref, parse(t, s.Host+"/other:v2"), "", nil},
		{ref, parse(t, s.Host+"/other:v2"), "", nil},
		{ref, parse(t, "oci:"+layout+":v1"), "", nil},
		{ref, parse(t, "oci:"+layout+":v1"), "", nil},
	} {
		o := imageindex.ConvertOptions{Key: key, Tag: tt.tag, Dir: t.TempDir()}
		if _, err := imageindex.Convert(t.Context(), open(t, tt.from), tt.to, o); !errors.Is(err, tt.want) {
			t.Errorf("convert to %s, tag %q: %v", tt.to, tt.tag, err)
		}
	}
	if got, err := open(t, ref).Images(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("the image's own tag names %d images, %v", len(got), err)
	}
}

// The name of an image in a layout is never given to its index, however the
// layout's directory is written.
func TestConvertInsideALayout(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	dir := filepath.Join(t.TempDir(), "layout")
	as := parse(t, "oci:"+dir+":v1")
	from := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	convert(t, from, as, imageindex.ConvertOptions{AsImage: true, Build: build.Options{Mode: build.AsImage}})
	for _, to := range []string{"oci:" + dir + ":v1", "oci:" + filepath.Dir(dir) + "/../" + filepath.Base(filepath.Dir(dir)) + "/layout:v1", "oci:" + dir + ":idx"} {
		convert(t, as, parse(t, to), imageindex.ConvertOptions{Key: key})
		images, err := open(t, as).Images(t.Context())
		if err != nil || len(images) != 1 {
			t.Fatalf("after --to %s the image is gone: %v", to, err)
		}
		checkContent(t, parse(t, to), trusting(t, key), merged)
	}
}

// An index in another repository comes with its image.
func TestConvertCopiesTheImage(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	ref := put(t, s, "app:v1", indextest.Image(t, "amd64", layers...))
	for _, host := range []string{s.Host, indextest.NewRegistry(t, false).Host} {
		to := parse(t, host+"/mirror:v1")
		if c := convert(t, ref, to, imageindex.ConvertOptions{Key: key}); !c[0].Copied {
			t.Errorf("to %s: the image was not copied", to)
		}
		checkContent(t, to, trusting(t, key), merged)
		if c := convert(t, ref, to, imageindex.ConvertOptions{Key: key}); c[0].Copied || c[0].SentBytes != 0 {
			t.Errorf("to %s again: copied %v, %d bytes sent", to, c[0].Copied, c[0].SentBytes)
		}
		images, err := open(t, to).Images(t.Context())
		if err != nil || len(images) != 1 || images[0].Descriptor.Digest.String() != open1(t, ref).Descriptor.Digest.String() {
			t.Errorf("%s: %d images, %v", to, len(images), err)
		}
	}
}

func open1(t *testing.T, ref image.Ref) *image.Image {
	t.Helper()
	images, err := open(t, ref).Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return images[0]
}

// A layer that is indexed where it is goes into a layout with its index.
func TestLayoutKeepsLayersInPlace(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	lazy := parse(t, s.Host+"/lazy:v1")
	convert(t, ref, lazy, imageindex.ConvertOptions{AsImage: true, Build: build.Options{Mode: build.AsImage, ChunkSize: 64 << 10, GroupSize: 64 << 10}})
	to := parse(t, "oci:"+filepath.Join(t.TempDir(), "layout")+":app")
	c := convert(t, lazy, to, imageindex.ConvertOptions{Key: key})
	if !c[0].Layers[0].InPlace {
		t.Fatal("the layer was not indexed in place")
	}
	checkContent(t, to, trusting(t, key), merged)
}

func TestConvertAtTheSameTime(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, false), newKey(t)
	layers, merged := layersV1()
	dir := filepath.Join(t.TempDir(), "layout")
	from := []image.Ref{
		put(t, s, "app:v1", indextest.Image(t, "amd64", layers...)),
		put(t, s, "app:v2", indextest.Image(t, "amd64", layers[0])),
	}
	to := []image.Ref{parse(t, "oci:"+dir+":v1"), parse(t, "oci:"+dir+":v2")}
	failed := make(chan error)
	for i := range from {
		for _, target := range []image.Ref{from[i], to[i]} {
			src, o := open(t, from[i]), imageindex.ConvertOptions{Key: key, Dir: t.TempDir()}
			go func() {
				_, err := imageindex.Convert(t.Context(), src, target, o)
				failed <- err
			}()
		}
	}
	for range 4 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	checkContent(t, from[0], trusting(t, key), merged)
	checkContent(t, to[0], trusting(t, key), merged)
	if _, _, err := find(t, to[1], trusting(t, key)); err != nil {
		t.Error(err)
	}
}

// The blobs of one platform are gone before those of the next are made.
func TestConvertKeepsOnePlatformsBlobs(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, _ := layersV1()
	images := indextest.Index(map[string]ggcr.Image{
		"amd64": indextest.Image(t, "amd64", layers...), "arm64": indextest.Image(t, "arm64", files{"b": noise(2, 300_000)}),
	})
	ref := parse(t, s.PutIndex("multi", images))
	dir, most := t.TempDir(), 0
	o := imageindex.ConvertOptions{Key: key, Dir: dir, Progress: func(imageindex.Progress) {
		all, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Error(err)
		}
		most = max(most, len(all))
	}}
	if _, err := imageindex.Convert(t.Context(), open(t, ref), ref, o); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) > 0 || most != 1 {
		t.Errorf("blobs of %d platforms at a time, %d files left, %v", most, len(left), err)
	}
}
