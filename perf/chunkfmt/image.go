package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// subject is an image that is measured.
type subject struct {
	name   string
	layout string // directory of the OCI layout
	id     string // differs for different content
}

// variant is where an image made of this one is kept.
func (s *subject) variant(dir, kind string) string {
	return filepath.Join(dir, s.name+"-"+kind+"-"+s.id)
}

// shortName is what an image is called in tables: the last element of its path
// that says something.
func shortName(path string) string {
	path = filepath.Clean(path)
	if base := filepath.Base(path); base != "oci" || filepath.Base(filepath.Dir(path)) == "." {
		return base
	}
	return filepath.Base(filepath.Dir(path))
}

// open finds an image, or makes it.
func (o *options) open(ctx context.Context, image string) (*subject, error) {
	s := &subject{name: shortName(image)}
	var err error
	if s.layout, err = o.layout(ctx, image); err != nil {
		return nil, err
	}
	index, err := os.ReadFile(filepath.Join(s.layout, "index.json")) // #nosec G703 -- the user names the image
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(index)
	s.id = fmt.Sprintf("%x", sum[:6])
	return s, nil
}

// layout returns the OCI layout of an image, which is made if need be.
func (o *options) layout(ctx context.Context, image string) (string, error) {
	known := debimage.Images()
	i := slices.IndexFunc(known, func(img debimage.Image) bool { return img.Name == image })
	if i >= 0 {
		return debimage.Make(ctx, o.imageDir(), known[i], o.log)
	}
	if _, err := os.Stat(filepath.Join(image, "index.json")); err != nil { // #nosec G703 -- the user names the image
		return "", errors.New("neither the directory of an OCI layout nor a known image")
	}
	return filepath.Abs(image)
}

// measureImages measures what is to be measured of images.
func (o *options) measureImages(ctx context.Context, r *result) error {
	bin, remove, err := o.tempDir("bin-")
	if err != nil {
		return err
	}
	defer remove()
	o.log("building dfctl")
	if err := fleet.Build(ctx, bin, "dfctl"); err != nil {
		return err
	}
	o.dfctl = filepath.Join(bin, "dfctl")
	for _, image := range o.images {
		img, err := o.open(ctx, image)
		if err == nil {
			err = o.measureImage(ctx, r, img)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", image, err)
		}
	}
	return nil
}

func (o *options) measureImage(ctx context.Context, r *result, img *subject) error {
	if slices.Contains(o.modes, modeConvert) {
		c, err := o.compare(ctx, img)
		if err != nil {
			return err
		}
		r.Convert = append(r.Convert, *c)
	}
	if slices.Contains(o.modes, modeNext) {
		n, err := o.measureNext(ctx, img)
		if err != nil {
			return err
		}
		r.Next = append(r.Next, *n)
	}
	if slices.Contains(o.modes, modeSweep) {
		s, err := o.sweep(ctx, img, o.settings)
		if err != nil {
			return err
		}
		r.Sweep = append(r.Sweep, s...)
	}
	return nil
}
