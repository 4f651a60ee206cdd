package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/damselfly-io/damselfly/perf/internal/containerd"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// estargz returns the archive with the image as eStargz, which ctr-remote makes
// if it is not there yet. It takes minutes.
func (s *site) estargz(ctx context.Context, img *image) (_ string, err error) {
	dir := filepath.Join(s.o.work, "images")
	archive := filepath.Join(dir, fmt.Sprintf("%s-estargz-%.12s.tar", img.name, img.manifest.Encoded()))
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	s.o.log("converting %s to eStargz", img.name)
	work := s.path("estargz")
	defer func() { err = errors.Join(err, wipe(work)) }()
	d, err := containerd.Start(ctx, containerd.Options{
		Host: fleet.Local{}, Programs: s.containerd, Dir: work, Registry: registryName, Endpoint: "http://127.0.0.1:1",
	})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.Close(ctx)) }()
	return archive, s.convertToEstargz(ctx, d, img, work, archive)
}

func (s *site) convertToEstargz(ctx context.Context, d *containerd.Daemon, img *image, work, archive string) error {
	plain := filepath.Join(work, "plain.tar")
	if err := quietly(exec.CommandContext(ctx, "tar", "-C", img.layout, "-cf", plain, ".")); err != nil {
		return err
	}
	base, _, _ := strings.Cut(img.ref(), ":")
	if _, err := d.Ctr(ctx, "images", "import", "--no-unpack", "--base-name", base, plain); err != nil {
		return err
	}
	if err := quietly(exec.CommandContext(ctx, s.o.ctrRemote, "--address", d.Socket(), "images", "convert", "--estargz", "--oci", img.ref(), img.estargzRef())); err != nil { // #nosec G204 -- the user names it
		return err
	}
	made := filepath.Join(work, "made.tar")
	if _, err := d.Ctr(ctx, "images", "export", made, img.estargzRef()); err != nil {
		return err
	}
	part := archive + ".part"
	if err := quietly(exec.CommandContext(ctx, "mv", made, part)); err != nil { // across file systems
		return err
	}
	return os.Rename(part, archive)
}
