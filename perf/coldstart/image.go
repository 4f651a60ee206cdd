package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
)

// command is what a container runs.
type command struct {
	name string
	args []string
	want string // what its output begins with
}

const hello = `export GOCACHE=/tmp/cache GO111MODULE=off && cd /tmp && printf '%s\n' 'package main' 'import "fmt"' 'func main() { fmt.Println("hello") }' >hello.go && exec go run hello.go`

// commandsOf returns the commands that are measured in an image.
func commandsOf(image string) []command {
	switch image {
	case "golang":
		return []command{
			{"go version", []string{"go", "version"}, "go version go"},
			{"go run hello.go", []string{"sh", "-c", hello}, "hello\n"},
		}
	case "node":
		return []command{{"node -e", []string{"node", "-e", `console.log("hello")`}, "hello\n"}}
	case "python":
		return []command{
			{"python3 -c", []string{"python3", "-c", `print("hello")`}, "hello\n"},
			{"import numpy", []string{"python3", "-c", `import numpy; print(numpy.arange(4).sum())`}, "6\n"},
		}
	}
	return nil
}

// image is one that is measured.
type image struct {
	name     string
	layout   string // directory of the OCI layout
	manifest digest.Digest
	layers   int64 // bytes
	commands []command
}

// openImage finds an image, or makes it.
func (o *options) openImage(ctx context.Context, text string) (*image, error) {
	name, dir, given := strings.Cut(text, "=")
	if !given {
		known := debimage.Images()
		i := slices.IndexFunc(known, func(img debimage.Image) bool { return img.Name == name })
		var err error
		if dir, err = debimage.Make(ctx, filepath.Join(o.work, "images"), known[i], o.log); err != nil {
			return nil, err
		}
	}
	img := &image{name: name, layout: dir, commands: o.commands(name)}
	if err := img.read(); err != nil {
		return nil, fmt.Errorf("image %s: %w", text, err)
	}
	return img, nil
}

// read reads the image's manifest.
func (img *image) read() error {
	var index v1.Index
	if err := readJSON(filepath.Join(img.layout, v1.ImageIndexFile), &index); err != nil {
		return err
	}
	if len(index.Manifests) != 1 {
		return errors.New("want a layout with one image")
	}
	img.manifest = index.Manifests[0].Digest
	if err := img.manifest.Validate(); err != nil {
		return err
	}
	var manifest v1.Manifest
	if err := readJSON(filepath.Join(img.layout, v1.ImageBlobsDir, img.manifest.Algorithm().String(), img.manifest.Encoded()), &manifest); err != nil {
		return err
	}
	for _, l := range manifest.Layers {
		img.layers += l.Size
	}
	return nil
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

// ref is the image's reference on the nodes.
func (img *image) ref() string { return registryName + "/" + img.name + ":latest" }

// estargzRef is that of its eStargz variant.
func (img *image) estargzRef() string { return registryName + "/" + img.name + ":estargz" }
