package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// member is a file in a tar; with a link it is a symbolic link.
type member struct {
	name, content, link string
}

func tarFile(t *testing.T, members ...member) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(name, tarOf(t, members...), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func tarOf(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Size: int64(len(m.content)), Mode: 0o644, Typeflag: tar.TypeReg}
		if m.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, m.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func configOf(t *testing.T, contents ...[]byte) string {
	t.Helper()
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "riscv64"}, RootFS: v1.RootFS{Type: "layers"}}
	for _, content := range contents {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(content))
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDockerArchive(t *testing.T) {
	one, two := noise(1, 5000), noise(2, 700)
	config := configOf(t, one, two, one, two)
	name := tarFile(t,
		member{name: "a/layer.tar", content: string(one)},
		member{name: "b/layer.tar", content: string(two)},
		member{name: "c/layer.tar", link: "../a/layer.tar"}, // as docker does for equal layers
		member{name: "d.tar.gz", content: string(gzipped(t, two))},
		member{name: "config.json", content: config},
		member{name: "manifest.json", content: `[{"Config":"config.json","RepoTags":["x:1"],"Layers":["a/layer.tar","b/layer.tar","c/layer.tar","d.tar.gz"]}]`},
	)
	list := images(t, open(t, parse(t, "docker-archive:"+name), testOptions()))
	if len(list) != 1 {
		t.Fatalf("%d images", len(list))
	}
	img := list[0]
	if string(img.Config) != config || img.Platform.Architecture != "riscv64" || digest.FromBytes(img.Manifest) != img.Descriptor.Digest {
		t.Errorf("image %+v", img)
	}
	checkLayers(t, img)
	for i, want := range []v1.Descriptor{
		{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(one), Size: 5000},
		{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(two), Size: 700},
		{MediaType: v1.MediaTypeImageLayer, Digest: digest.FromBytes(one), Size: 5000},
		{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(gzipped(t, two)), Size: int64(len(gzipped(t, two)))},
	} {
		if got := img.Layers[i].Descriptor; got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
			t.Errorf("layer %d: %+v, want %+v", i, got, want)
		}
	}
	if got := img.Layers[3].DiffID; got != digest.FromBytes(two) {
		t.Errorf("diff ID %s", got)
	}
}

// TestDockerArchiveWithLayout has what docker writes since version 25: an OCI
// layout, of which only one platform was saved, with manifest.json besides.
func TestDockerArchiveWithLayout(t *testing.T) {
	f := newFixture(t)
	delete(f.blobs, f.arm.Digest)
	index, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{f.index}})
	if err != nil {
		t.Fatal(err)
	}
	members := []member{
		{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`},
		{name: "index.json", content: string(index)},
		{name: "manifest.json", content: `[{"Config":"blobs/sha256/0","Layers":[]}]`},
	}
	for d, data := range f.blobs {
		members = append(members, member{name: "blobs/sha256/" + d.Encoded(), content: string(data)})
	}
	s := open(t, parse(t, "docker-archive:"+tarFile(t, members...)), testOptions())
	list := images(t, s)
	if len(list) != 1 {
		t.Fatalf("%d images, want 1", len(list))
	}
	checkImage(t, f, list[0], f.amd)
}

func TestBadArchives(t *testing.T) {
	layer := noise(1, 2000)
	manifest := `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]`
	good := []member{{name: "l", content: string(layer)}, {name: "c", content: configOf(t, layer)}, {name: "manifest.json", content: manifest}}
	with := func(i int, content string) []byte {
		changed := append([]member{}, good...)
		changed[i].content = content
		return tarOf(t, changed...)
	}
	for name, tc := range map[string]struct {
		data []byte
		want error
		text string
	}{
		"compressed":       {gzipped(t, tarOf(t, good...)), ErrUnsupported, "gunzip"},
		"not a tar":        {noise(9, 4096), ErrCorrupt, "not a tar"},
		"empty":            {nil, ErrUnsupported, "docker save"},
		"something else":   {tarOf(t, member{name: "etc/passwd", content: "x"}), ErrUnsupported, "docker save"},
		"cut off":          {tarOf(t, good[1], good[2], good[0])[:5000], ErrCorrupt, ""},
		"two images":       {with(2, `[{"RepoTags":["x:1"]},{"RepoTags":["y:2"]}]`), ErrUnsupported, "x:1, y:2"},
		"no image":         {with(2, `[]`), ErrUnsupported, "0 images"},
		"not JSON":         {with(2, `[`), ErrCorrupt, "manifest.json"},
		"missing layer":    {with(2, strings.ReplaceAll(manifest, `"l"`, `"m"`)), ErrCorrupt, "lacks m"},
		"more layers":      {with(2, strings.ReplaceAll(manifest, `"l"`, `"l","l"`)), ErrCorrupt, "2 layers"},
		"bad diff ID":      {with(1, `{"rootfs":{"diff_ids":["sha256:1"]}}`), nil, "sha256"},
		"no configuration": {tarOf(t, good[0], good[2]), ErrNotFound, "configuration"},
		"bad layout":       {tarOf(t, member{name: "oci-layout", content: `{}`}, member{name: "index.json", content: "{}"}), ErrUnsupported, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.tar")
			write(t, file, string(tc.data))
			s, err := Open(t.Context(), parse(t, "docker-archive:"+file), testOptions())
			if err == nil {
				_ = s.Close()
				t.Fatal("no error")
			}
			if tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), file) {
				t.Errorf("error %v; want %v with %q", err, tc.want, tc.text)
			}
		})
	}
	if _, err := Open(t.Context(), parse(t, "docker-archive:/no/such"), testOptions()); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such file: %v", err)
	}
}

// TestArchiveLayerIsVerified has a layer that is not what its diff ID says.
func TestArchiveLayerIsVerified(t *testing.T) {
	name := tarFile(t,
		member{name: "l", content: string(noise(1, 2000))},
		member{name: "c", content: configOf(t, noise(2, 2000))},
		member{name: "manifest.json", content: `[{"Config":"c","Layers":["l"]}]`},
	)
	img := images(t, open(t, parse(t, "docker-archive:"+name), testOptions()))[0]
	if _, err := readAll(t.Context(), img.Layers[0].Open); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

func TestLinksInArchiveEnd(t *testing.T) {
	name := tarFile(t,
		member{name: "l", link: "m"}, member{name: "m", link: "l"},
		member{name: "c", content: configOf(t, noise(2, 2000))},
		member{name: "manifest.json", content: `[{"Config":"c","Layers":["l"]}]`},
	)
	if _, err := Open(t.Context(), parse(t, "docker-archive:"+name), testOptions()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

func FuzzArchive(f *testing.F) {
	layer := []byte("layer")
	config := `{"rootfs":{"diff_ids":["` + digest.FromBytes(layer).String() + `"]}}`
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range []member{{name: "l", content: "layer"}, {name: "c", content: config}, {name: "manifest.json", content: `[{"Config":"c","Layers":["l"]}]`}} {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Size: int64(len(m.content)), Typeflag: tar.TypeReg}); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte(m.content)); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "x.tar")
		write(t, name, string(data))
		s, err := Open(t.Context(), Ref{Kind: KindArchive, Path: name}, testOptions())
		if err != nil {
			return
		}
		defer func() { _ = s.Close() }() // nothing was written
		list, err := s.Images(t.Context())
		if err != nil {
			return
		}
		for _, img := range list {
			for i := range img.Layers {
				if data, err := readAll(t.Context(), img.Layers[i].Open); err == nil && digest.FromBytes(data) != img.Layers[i].Descriptor.Digest {
					t.Error("a layer with another digest was read without error")
				}
			}
		}
	})
}
