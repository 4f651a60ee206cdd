package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// image is one in the registry, with its index.
type image struct {
	name     string
	manifest digest.Digest
	chain    digest.Digest // chain ID of all layers
	command  []string
	layers   []v1.Descriptor
}

// ref is the image's reference on the nodes.
func (img *image) ref() string { return registryName + "/" + img.name + ":latest" }

// local is an image's reference on the registry's host, where its name is a
// loopback address.
func local(name string) string { return "127.0.0.1:" + registryPort + "/" + name + ":latest" }

// push has an image in the registry, with its index; upload puts it there the first
// time.
func (l *lab) push(ctx context.Context, name string, upload func() (*image, error)) (*image, error) {
	if img := l.pushed[name]; img != nil {
		return img, nil
	}
	img, err := upload()
	if err != nil {
		return nil, fmt.Errorf("push %s: %w", name, err)
	}
	img.name = name
	// Where the CPUs are, not the shaped link.
	err = quietly(l.net.Host(registryHost).Command(ctx, l.program("dfctl"), "image", "convert", local(name), "--key", l.path("key.pem")))
	if err != nil {
		return nil, err
	}
	l.pushed[name] = img
	return img, nil
}

// real has the image that the user names in the registry.
func (l *lab) real(ctx context.Context) (*image, error) {
	name, layout, given := strings.Cut(l.o.image, "=")
	return l.push(ctx, name, func() (*image, error) {
		if !given {
			known := debimage.Images()
			i := slices.IndexFunc(known, func(img debimage.Image) bool { return img.Name == name })
			var err error
			if layout, err = debimage.Make(ctx, filepath.Join(l.o.work, "images"), known[i], l.o.log); err != nil {
				return nil, err
			}
		}
		l.o.log("pushing %s", name)
		err := quietly(l.net.Host(registryHost).Command(ctx, "skopeo", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout+":latest", "docker://"+local(name)))
		if err != nil {
			return nil, err
		}
		return readLayout(layout)
	})
}

// readLayout reads what an OCI layout says of its only image.
func readLayout(layout string) (*image, error) {
	var index v1.Index
	if err := readJSON(filepath.Join(layout, v1.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, errors.New("want a layout with one image")
	}
	img := &image{manifest: index.Manifests[0].Digest}
	var manifest v1.Manifest
	if err := readBlob(layout, img.manifest, &manifest); err != nil {
		return nil, err
	}
	var config v1.Image
	if err := readBlob(layout, manifest.Config.Digest, &config); err != nil {
		return nil, err
	}
	img.layers, img.chain = manifest.Layers, identity.ChainID(config.RootFS.DiffIDs)
	img.command = append(config.Config.Entrypoint, config.Config.Cmd...)
	if len(img.command) == 0 {
		return nil, errors.New("want an image with a command")
	}
	return img, nil
}

func readBlob(layout string, d digest.Digest, v any) error {
	if err := d.Validate(); err != nil {
		return err
	}
	return readJSON(filepath.Join(layout, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), v)
}

func readJSON(path string, v any) error {
	text, err := os.ReadFile(path) // #nosec G304 -- the user names the image
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// file is one of a synthetic image.
type file struct {
	name string
	data []byte
}

// synthetic has an image in the registry that consists of one layer with files.
func (l *lab) synthetic(ctx context.Context, name string, files func() []file) (*image, error) {
	return l.push(ctx, name, func() (*image, error) { return l.upload(ctx, name, files()) })
}

func (l *lab) upload(ctx context.Context, to string, files []file) (*image, error) {
	img, err := imageOf(files)
	if err != nil {
		return nil, err
	}
	ref, err := name.ParseReference(local(to))
	if err != nil {
		return nil, err
	}
	client := fleet.Client(l.net.Host(registryHost))
	defer client.CloseIdleConnections()
	if err := remote.Write(ref, img, remote.WithTransport(client.Transport), remote.WithContext(ctx)); err != nil {
		return nil, err
	}
	return describe(img)
}

func imageOf(files []file) (ggcr.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	base, err := mutate.ConfigFile(base, &ggcr.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", RootFS: ggcr.RootFS{Type: "layers"}})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, static.NewLayer(layer.Bytes(), types.OCIUncompressedLayer))
}

// describe returns what is used of an image of one uncompressed layer.
func describe(x ggcr.Image) (*image, error) {
	manifest, err := x.Digest()
	if err != nil {
		return nil, err
	}
	m, err := x.Manifest()
	if err != nil {
		return nil, err
	}
	img := &image{manifest: digest.Digest(manifest.String())}
	var diffs []digest.Digest
	for _, d := range m.Layers {
		diffs = append(diffs, digest.Digest(d.Digest.String()))
		img.layers = append(img.layers, v1.Descriptor{MediaType: string(d.MediaType), Digest: digest.Digest(d.Digest.String()), Size: d.Size})
	}
	img.chain = identity.ChainID(diffs)
	return img, nil
}

// noise returns n bytes that cannot be compressed, other ones for each seed.
func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return data
}
