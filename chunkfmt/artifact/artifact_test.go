package artifact_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
)

var update = flag.Bool("update", false, "write the golden files")

func sum(format string, args ...any) chunkfmt.Digest {
	return chunkfmt.Sum(fmt.Appendf(nil, format, args...))
}

// image has n layers and m blobs.
func image(n, m int) *artifact.Image {
	a := &artifact.Image{
		Subject: v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 777},
		Root:    sum("root"),
	}
	for i := range n {
		a.Layers = append(a.Layers, artifact.Layer{
			Index:  artifact.Object{Digest: sum("index %d", i), Size: int64(1000 + i)},
			Digest: sum("layer %d", i), DiffID: sum("diff %d", i), Root: sum("root %d", i),
		})
	}
	for i := range m {
		a.Blobs = append(a.Blobs, artifact.Object{Digest: sum("blob %d", i), Size: int64(100000 + i)})
	}
	return a
}

// subject is the manifest and the config of the image whose artifact a is.
func subject(a *artifact.Image) (*v1.Manifest, *v1.Image) {
	m, config := &v1.Manifest{MediaType: v1.MediaTypeImageManifest}, &v1.Image{}
	for _, l := range a.Layers {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.Digest(l.Digest.String()), Size: 5})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(l.DiffID.String()))
	}
	return m, config
}

func manifest(t testing.TB, a *artifact.Image) []byte {
	t.Helper()
	data, _, err := a.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRoundTrip(t *testing.T) {
	shared := image(3, 0)
	shared.Layers[2].Index = shared.Layers[0].Index
	for _, a := range []*artifact.Image{image(1, 0), image(3, 2), shared, image(artifact.MaxLayers, 1000)} {
		data, d, err := a.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if d.Digest != digest.FromBytes(data) || d.Size != int64(len(data)) || d.ArtifactType != artifact.ArtifactType || d.Annotations[artifact.AnnotationRoot] != a.Root.String() {
			t.Errorf("descriptor %+v", d)
		}
		b, err := artifact.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("parsed %+v, want %+v", b, a)
		}
	}
}

// The bytes are what others read, and what is signed.
func TestGolden(t *testing.T) {
	const file = "testdata/manifest.json"
	got := append(manifest(t, image(2, 1)), '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestManifestRefuses(t *testing.T) {
	for name, change := range map[string]func(a *artifact.Image){
		"no indexes":                  func(a *artifact.Image) { a.Layers = nil },
		"1025 indexes, at most 1024":  func(a *artifact.Image) { *a = *image(1025, 0) },
		"no Merkle root":              func(a *artifact.Image) { a.Root = chunkfmt.Digest{} },
		"layer 1: no digest, diff ID": func(a *artifact.Image) { a.Layers[1].DiffID = chunkfmt.Digest{} },
		"layer 0: index":              func(a *artifact.Image) { a.Layers[0].Index.Size = artifact.MaxIndexSize + 1 },
		"has 0 bytes":                 func(a *artifact.Image) { a.Layers[0].Index.Size = 0 },
		"data blob 1: invalid":        func(a *artifact.Image) { a.Blobs[1].Size = -1 },
		"listed twice":                func(a *artifact.Image) { a.Blobs[1] = a.Blobs[0] },
		" is listed twice":            func(a *artifact.Image) { a.Blobs[0].Digest = a.Layers[0].Index.Digest },
		"has 7 bytes here and 1000": func(a *artifact.Image) {
			a.Layers[1].Index = artifact.Object{Digest: a.Layers[0].Index.Digest, Size: 7}
		},
		"subject is a \"text/plain\"":  func(a *artifact.Image) { a.Subject.MediaType = "text/plain" },
		"invalid digest \"sha512:ab\"": func(a *artifact.Image) { a.Subject.Digest = "sha512:ab" },
		"at most 4194304":              func(a *artifact.Image) { *a = *image(1, 40000) },
	} {
		a := image(2, 2)
		change(a)
		if _, _, err := a.Manifest(); !errors.Is(err, artifact.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("got error %v, want %q", err, name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(manifest(t, image(2, 1)))
	index0 := image(2, 1).Layers[0].Index.Digest.String()
	for _, tt := range []struct{ old, new, want string }{
		{`"schemaVersion":2`, `"schemaVersion":1`, "schemaVersion is 1"},
		{`"mediaType":"application/vnd.oci.image.manifest.v1+json",`, "", "no media type"},
		{`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"`, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"`, "media type is"},
		{artifact.ArtifactType, "application/vnd.damselfly.image.v2", "artifactType is"},
		{`"size":2}`, `"size":3}`, "config is not the empty one"},
		{`"size":777`, `"size":-1`, "subject: "},
		{`"size":777`, `"size":4194305`, "subject: "},
		{`"size":777`, `"size":1e3`, "cannot unmarshal"},
		{`"subject":`, `"subjekt":`, "no subject"},
		{`"annotations":{"dev.damselfly.root"`, `"annotations":{"dev.damselfly.toor"`, "no annotation dev.damselfly.root"},
		{artifact.AnnotationLayerDiffID, "x", "layer 0: invalid manifest: no annotation dev.damselfly.layer.diff-id"},
		{artifact.IndexType, "application/vnd.damselfly.index.v2", "layer 0: invalid manifest: media type is"},
		{artifact.DataType, artifact.IndexType, "layer 2: "},
		{artifact.IndexType, artifact.DataType, "layer 1: invalid manifest: index after a data blob"},
		{`"digest":"` + index0, `"digest":"` + strings.ToUpper(index0), "layer 0: invalid manifest: invalid digest"},
		{`"size":100000`, `"size":20000000000000`, "at most 17592186044416"},
		{`{"schemaVersion"`, `{"manifests":[],"schemaVersion"`, "list of manifests"},
		{`{"schemaVersion"`, `{"fsLayers":[],"schemaVersion"`, "Docker's first schema"},
		{`{"schemaVersion"`, `[{"schemaVersion"`, "invalid manifest: "},
		{`{"schemaVersion"`, strings.Repeat(" ", artifact.MaxManifest) + `{"schemaVersion"`, "at most 4194304"},
	} {
		bad := strings.Replace(good, tt.old, tt.new, 1)
		if bad == good {
			t.Fatalf("%q is not in %s", tt.old, good)
		}
		if _, err := artifact.Parse([]byte(bad)); !errors.Is(err, artifact.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q instead of %q: got error %v, want %q", tt.new, tt.old, err, tt.want)
		}
	}
	for i := range good {
		if _, err := artifact.Parse([]byte(good[:i])); !errors.Is(err, artifact.ErrInvalid) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
}

func TestParseIgnores(t *testing.T) {
	data := strings.Replace(string(manifest(t, image(2, 1))), `{"schemaVersion"`, `{"later":{"a":1},"schemaVersion"`, 1)
	data = strings.Replace(data, `"dev.damselfly.root"`, `"org.example":"x","dev.damselfly.root"`, 1)
	if a, err := artifact.Parse([]byte(data)); err != nil || !reflect.DeepEqual(a, image(2, 1)) {
		t.Errorf("%+v, %v", a, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(manifest(f, image(1, 0)))
	f.Add(manifest(f, image(2, 2)))
	f.Add([]byte(`{"schemaVersion":2,"layers":[null],"subject":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = artifact.ParseSubject(data)
		a, err := artifact.Parse(data)
		if err != nil {
			if !errors.Is(err, artifact.ErrInvalid) {
				t.Fatalf("error %v does not wrap ErrInvalid", err)
			}
			return
		}
		again, _, err := a.Manifest()
		if err != nil {
			t.Fatalf("parsed, but cannot be written: %v", err)
		}
		if b, err := artifact.Parse(again); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v became %+v, %v", a, b, err)
		}
	})
}

func TestParseSubject(t *testing.T) {
	layer := `{"mediaType":"x","digest":"` + sum("layer").String() + `","size":1}`
	config := `"config":` + layer
	for _, tt := range []struct{ data, want string }{
		{`{"schemaVersion":2,` + config + `,"layers":[` + layer + `]}`, ""},
		{`{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",` + config + `,"layers":[]}`, ""},
		{`{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json",` + config + `}`, "media type is"},
		{`{"schemaVersion":2,` + config + `,"layers":[],"manifests":null}`, "list of manifests: name the manifest of one platform"},
		{`{"schemaVersion":1,"fsLayers":[]}`, "first schema"},
		{`{"schemaVersion":2,"layers":[]}`, "config: "},
		{`{"schemaVersion":2,` + config + `,"layers":[` + layer + `,{"digest":"sha512:00"}]}`, "layer 1: "},
		{`{"schemaVersion":2,` + config + `,"layers":[` + strings.Repeat(layer+",", artifact.MaxLayers) + layer + `]}`, "1025 layers"},
	} {
		_, err := artifact.ParseSubject([]byte(tt.data))
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, artifact.ErrInvalid) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%.150s: got error %v, want %q", tt.data, err, tt.want)
		}
	}
}

func TestMatch(t *testing.T) {
	for want, change := range map[string]func(*v1.Manifest, *v1.Image){
		"":                                     func(*v1.Manifest, *v1.Image) {},
		"indexes of 3 layers, the image has 2": func(m *v1.Manifest, _ *v1.Image) { m.Layers = m.Layers[1:] },
		"layer 0: it is of ":                   func(m *v1.Manifest, _ *v1.Image) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] },
		"3 layers and its config 4 diff IDs":   func(_ *v1.Manifest, c *v1.Image) { c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, "x") },
		"it is of diff ID ":                    func(_ *v1.Manifest, c *v1.Image) { c.RootFS.DiffIDs[2] = c.RootFS.DiffIDs[1] },
	} {
		a := image(3, 0)
		m, config := subject(a)
		change(m, config)
		err := artifact.Match(a, m, config)
		if want == "" && err != nil || want != "" && (!errors.Is(err, artifact.ErrMismatch) || !strings.Contains(err.Error(), want)) {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
}

func TestCheckLayer(t *testing.T) {
	l := image(1, 0).Layers[0]
	if err := l.Check(&chunkfmt.Index{DiffID: l.DiffID, Root: l.Root}); err != nil {
		t.Error(err)
	}
	if err := l.Check(&chunkfmt.Index{DiffID: l.Root, Root: l.Root}); !errors.Is(err, artifact.ErrMismatch) {
		t.Errorf("other diff ID: %v", err)
	}
	if err := l.Check(&chunkfmt.Index{DiffID: l.DiffID, Root: l.DiffID}); !errors.Is(err, artifact.ErrMismatch) {
		t.Errorf("other root: %v", err)
	}
}

func TestBind(t *testing.T) {
	a := image(3, 1)
	m, _ := subject(a)
	mine := map[string]string{"mine": "1"}
	m.Layers[0].Annotations = mine
	if a.Bound(m) {
		t.Fatal("bound by a manifest without annotations")
	}
	if err := a.Bind(m); err != nil {
		t.Fatal(err)
	}
	if !a.Bound(m) || m.Layers[0].Annotations["mine"] != "1" || len(mine) != 1 {
		t.Errorf("bound %v, annotations %v, caller's %v", a.Bound(m), m.Layers[0].Annotations, mine)
	}
	for name, change := range map[string]func(b *artifact.Image){
		"index":       func(b *artifact.Image) { b.Layers[1].Index.Digest = sum("other") },
		"root":        func(b *artifact.Image) { b.Root = sum("other") },
		"layer":       func(b *artifact.Image) { b.Layers[2].Digest = sum("other") },
		"fewer":       func(b *artifact.Image) { b.Layers = b.Layers[:2] },
		"none at all": func(b *artifact.Image) { b.Layers = nil },
	} {
		b := image(3, 1)
		change(b)
		if b.Bound(m) {
			t.Errorf("%s: still bound", name)
		}
	}
	other := image(2, 0)
	if err := other.Bind(m); !errors.Is(err, artifact.ErrMismatch) {
		t.Errorf("bind to another image: %v", err)
	}
}

func TestEncodeNoLayers(t *testing.T) {
	if _, _, err := artifact.Encode(v1.Manifest{}); !errors.Is(err, artifact.ErrInvalid) {
		t.Error(err)
	}
	var m v1.Manifest
	data, d, err := artifact.Encode(v1.Manifest{Layers: []v1.Descriptor{artifact.Empty()}})
	if err != nil || json.Unmarshal(data, &m) != nil || m.Config.Digest != v1.DescriptorEmptyJSON.Digest || d.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("%s, %+v, %v", data, d, err)
	}
}
