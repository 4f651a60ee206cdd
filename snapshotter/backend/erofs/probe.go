package erofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/fanotify"
)

// Probe reports whether this kernel mounts EROFS from files in dir, and asks
// before it reads them. It really does both.
func Probe(ctx context.Context, dir string) (err error) {
	if err := fanotify.Probe(ctx, dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	d := chunkfmt.NewDraft()
	if err := d.Put("probe", &chunkfmt.Node{Kind: chunkfmt.Dir, Mode: 0o755}); err != nil {
		return err
	}
	tree, err := d.Freeze(nil, nil)
	if err != nil {
		return err
	}
	if tree, err = chunkfmt.Merge(tree); err != nil {
		return err
	}
	meta, at := filepath.Join(tmp, "meta"), filepath.Join(tmp, "root")
	f, err := os.Create(meta)
	if err != nil {
		return err
	}
	_, err = erofs.Write(f, tree, erofs.Options{})
	if err := errors.Join(err, f.Close(), os.Mkdir(at, 0o700)); err != nil {
		return err
	}
	root, err := create(&backend.Image{Meta: meta})
	if err != nil {
		if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV) {
			err = fmt.Errorf("the kernel does not mount EROFS from files in %s (Linux 6.12 with EROFS_FS_BACKED_BY_FILE, on ext4 or xfs): %w", dir, err)
		}
		return err
	}
	defer unix.Close(root) //nolint:errcheck // it was only looked at
	if err := attach(root, at); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, detach(at)) }()
	if _, err := os.Stat(filepath.Join(at, "probe")); err != nil {
		return fmt.Errorf("an EROFS mount shows nothing: %w", err)
	}
	return nil
}
