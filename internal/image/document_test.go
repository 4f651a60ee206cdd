package image

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParseDocument(t *testing.T) {
	for _, tc := range []struct {
		data, mediaType, want string
		err                   error
	}{
		{`{"schemaVersion":2,"config":{}}`, "", v1.MediaTypeImageManifest, nil},
		{`{"schemaVersion":2,"config":{}}`, dockerManifest, dockerManifest, nil},
		{`{"schemaVersion":2,"config":{},"mediaType":"` + dockerManifest + `"}`, "", dockerManifest, nil},
		{`{"schemaVersion":2,"manifests":[]}`, "application/octet-stream", v1.MediaTypeImageIndex, nil},
		{`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `"}`, "", v1.MediaTypeImageIndex, nil},
		{`{"schemaVersion":2,"manifests":[],"config":{}}`, "", "", ErrCorrupt},
		{`{"schemaVersion":2,"manifests":[],"layers":[]}`, "", "", ErrCorrupt},
		{`{"schemaVersion":2,"manifests":[],"mediaType":"` + v1.MediaTypeImageManifest + `"}`, "", "", ErrCorrupt},
		{`{"schemaVersion":2,"layers":[]}`, "", "", ErrCorrupt},
		{`{"schemaVersion":1,"fsLayers":[]}`, "", "", ErrUnsupported},
		{`{"config":{}}`, dockerSigned1, "", ErrUnsupported},
		{`{"mediaType":"application/json"}`, "", "", ErrUnsupported},
		{`{}`, "", "", ErrUnsupported},
		{`[]`, "", "", ErrCorrupt},
		{``, "", "", ErrCorrupt},
	} {
		doc, err := parseDocument([]byte(tc.data), tc.mediaType)
		if !errors.Is(err, tc.err) {
			t.Errorf("%s (%s): %v, want %v", tc.data, tc.mediaType, err, tc.err)
		} else if err == nil && doc.MediaType != tc.want {
			t.Errorf("%s (%s): %s, want %s", tc.data, tc.mediaType, doc.MediaType, tc.want)
		}
	}
}

// TestBadImages has images in an OCI layout with one thing wrong.
func TestBadImages(t *testing.T) {
	layer := func(b blobs) v1.Descriptor { return b.add(v1.MediaTypeImageLayer, []byte("x")) }
	config := func(t *testing.T, b blobs, diffIDs ...digest.Digest) *v1.Descriptor {
		d := b.addJSON(t, v1.MediaTypeImageConfig, v1.Image{RootFS: v1.RootFS{DiffIDs: diffIDs}})
		return &d
	}
	manifest := func(t *testing.T, b blobs, config *v1.Descriptor, layers ...v1.Descriptor) v1.Descriptor {
		return b.addJSON(t, v1.MediaTypeImageManifest, document{SchemaVersion: 2, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: layers})
	}
	for name, tc := range map[string]struct {
		make func(t *testing.T, b blobs) v1.Descriptor
		want error
		text string
	}{
		"more layers": {func(t *testing.T, b blobs) v1.Descriptor { return manifest(t, b, config(t, b), layer(b)) }, ErrCorrupt, "1 layers"},
		"bad diff ID": {func(t *testing.T, b blobs) v1.Descriptor { return manifest(t, b, config(t, b, "sha256:1"), layer(b)) }, nil, "diff ID of layer 0"},
		"negative size": {func(t *testing.T, b blobs) v1.Descriptor {
			l := layer(b)
			l.Size = -1
			return manifest(t, b, config(t, b, someDigest), l)
		}, ErrCorrupt, "size of -1"},
		"bad digest": {func(t *testing.T, b blobs) v1.Descriptor {
			l := layer(b)
			l.Digest = "sha256:../../../../../etc/passwd"
			return manifest(t, b, config(t, b, someDigest), l)
		}, nil, "64 hex"},
		"no configuration": {func(t *testing.T, b blobs) v1.Descriptor {
			c := v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: someDigest, Size: 2}
			return manifest(t, b, &c)
		}, ErrNotFound, "configuration"},
		"huge configuration": {func(t *testing.T, b blobs) v1.Descriptor {
			c := v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: someDigest, Size: 1 << 40}
			return manifest(t, b, &c)
		}, ErrUnsupported, "at most"},
		"configuration of another digest": {func(t *testing.T, b blobs) v1.Descriptor {
			c := config(t, b)
			b[c.Digest] = []byte(strings.Repeat(" ", int(c.Size)))
			return manifest(t, b, c)
		}, ErrCorrupt, "digest"},
		"configuration of another length": {func(t *testing.T, b blobs) v1.Descriptor {
			c := config(t, b)
			c.Size++
			return manifest(t, b, c)
		}, ErrCorrupt, "descriptor says"},
		"configuration is no JSON": {func(t *testing.T, b blobs) v1.Descriptor {
			c := b.add(v1.MediaTypeImageConfig, []byte("nope"))
			return manifest(t, b, &c)
		}, ErrCorrupt, "configuration"},
		"artifact": {func(t *testing.T, b blobs) v1.Descriptor {
			return b.artifact(t, "application/vnd.example.x", b.image(t, "amd64"))
		}, ErrUnsupported, "application/vnd.example.x"},
		"manifest of another digest": {func(t *testing.T, b blobs) v1.Descriptor {
			m := manifest(t, b, config(t, b))
			b[m.Digest] = append(b[m.Digest], ' ')
			return m
		}, ErrCorrupt, "digest"},
		"huge manifest": {func(_ *testing.T, b blobs) v1.Descriptor {
			return b.add(v1.MediaTypeImageManifest, make([]byte, maxManifest+1))
		}, ErrUnsupported, "at most"},
		"nested deep": {func(t *testing.T, b blobs) v1.Descriptor {
			desc := b.image(t, "amd64")
			desc.Platform = nil
			for range maxDepth + 1 {
				desc = b.index(t, desc)
			}
			return desc
		}, ErrUnsupported, "nested"},
		"empty index": {func(t *testing.T, b blobs) v1.Descriptor { return b.index(t) }, ErrNoPlatform, "no image"},
		"index with a wrong size": {func(t *testing.T, b blobs) v1.Descriptor {
			m := b.image(t, "amd64")
			m.Size++
			return b.index(t, m)
		}, ErrCorrupt, "its index says"},
	} {
		t.Run(name, func(t *testing.T) {
			b := blobs{}
			dir := b.layout(t, named(tc.make(t, b), "x"))
			for d, data := range b { // as changed by make
				write(t, dir+"/blobs/sha256/"+d.Encoded(), string(data))
			}
			_, err := open(t, parse(t, "oci:"+dir+":x"), testOptions()).Images(t.Context())
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want %v with %q", err, tc.want, tc.text)
			}
		})
	}
}

func TestForeignLayer(t *testing.T) {
	b := blobs{}
	desc := b.image(t, "amd64", []byte("x"))
	var doc v1.Manifest
	must(t, json.Unmarshal(b[desc.Digest], &doc))
	for _, mediaType := range []string{
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	} {
		doc.Layers[0].MediaType = mediaType
		dir := b.layout(t, b.addJSON(t, v1.MediaTypeImageManifest, doc))
		for d, data := range b {
			write(t, dir+"/blobs/sha256/"+d.Encoded(), string(data))
		}
		l := &images(t, open(t, parse(t, "oci:"+dir), testOptions()))[0].Layers[0]
		_, oerr := l.Open(t.Context())
		_, rerr := l.ReadAt(t.Context(), make([]byte, 1), 0)
		for _, err := range []error{oerr, rerr} {
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "foreign") {
				t.Errorf("%s: %v", mediaType, err)
			}
		}
	}
}

func TestLayoutChoosesTheOnlyImage(t *testing.T) {
	b := blobs{}
	one, two := b.image(t, "amd64", []byte("1")), b.image(t, "amd64", []byte("2"))
	artifact := b.artifact(t, "application/vnd.example.x", one)
	img := images(t, open(t, parse(t, "oci:"+b.layout(t, artifact, named(one, "a"), named(one, "b"))), testOptions()))[0]
	if img.Descriptor.Digest != one.Digest {
		t.Errorf("chose %s", img.Descriptor.Digest)
	}
	dir := b.layout(t, named(one, "a"), named(two, "b"))
	_, err := open(t, parse(t, "oci:"+dir), testOptions()).Images(t.Context())
	if err == nil || !strings.Contains(err.Error(), "2 images in index.json, name one: it has a, b") {
		t.Errorf("two images: %v", err)
	}
	if _, err := Open(t.Context(), Ref{Kind: KindLayout, Path: t.TempDir()}, testOptions()); err == nil || !strings.Contains(err.Error(), "is no OCI layout") {
		t.Errorf("empty directory: %v", err)
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[{}]}`), v1.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{}]}`), "")
	f.Add([]byte(`{"schemaVersion":1}`), dockerSchema1)
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		doc, err := parseDocument(data, mediaType)
		if err != nil {
			return
		}
		if !doc.index() && doc.Config == nil {
			t.Error("a manifest without configuration")
		}
		if doc.index() && (doc.Config != nil || doc.Layers != nil) {
			t.Error("an index with parts of a manifest")
		}
		_ = doc.artifactType()
	})
}
