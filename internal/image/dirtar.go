package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	xattrRecord    = "SCHILY.xattr."
	whiteoutPrefix = ".wh."
)

// hostXattrs are labels that the host gives its files; they mean nothing
// elsewhere.
var hostXattrs = []string{"security.selinux", "security.ima", "security.evm"}

// writeTar writes a directory as the tar of a layer: in the order of the names
// of each directory, with owners as numbers, times to the nanosecond and
// extended attributes, so that an unchanged directory always gives the same
// bytes. Holes of sparse files are written out. Sockets, and the content of
// other file systems mounted in the directory, are left out with a warning.
func writeTar(ctx context.Context, w io.Writer, dir string, log *slog.Logger) error {
	buffered := bufio.NewWriterSize(w, 256<<10)
	d := &dirTar{ctx: ctx, tw: tar.NewWriter(buffered), root: dir, log: log, links: map[fileID]string{}}
	info, err := os.Stat(dir) // the directory itself may be named by a link
	if err != nil {
		return err
	}
	st, err := statOf(info, dir)
	if err != nil {
		return err
	}
	d.device = uint64(st.Dev) //nolint:unconvert // its type differs between architectures
	if err := d.add(".", info); err != nil {
		return err
	}
	if err := d.tw.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

type fileID struct{ dev, ino uint64 }

type dirTar struct {
	ctx    context.Context //nolint:containedctx // of one call
	tw     *tar.Writer
	root   string
	device uint64
	log    *slog.Logger
	links  map[fileID]string // first names of files that have several
}

func statOf(info fs.FileInfo, name string) (*syscall.Stat_t, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("stat %s: %w on this system", name, ErrUnsupported)
	}
	return st, nil
}

// add writes one file, and what is in it.
func (d *dirTar) add(name string, info fs.FileInfo) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	full := filepath.Join(d.root, name)
	if strings.HasPrefix(path.Base(name), whiteoutPrefix) {
		return fmt.Errorf("%s: %w: a layer cannot hold a name that begins with %s", full, ErrUnsupported, whiteoutPrefix)
	}
	if info.Mode()&fs.ModeSocket != 0 {
		d.log.Warn("left out a socket, which a layer cannot hold", "path", full)
		return nil
	}
	st, err := statOf(info, full)
	if err != nil {
		return err
	}
	h, err := d.header(name, full, info, st)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg && h.Size > 0 {
		return d.content(h, full)
	}
	if err := d.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	if !info.IsDir() {
		return nil
	}
	if uint64(st.Dev) != d.device { //nolint:unconvert // its type differs between architectures
		d.log.Warn("left out the content of another file system that is mounted here", "path", full)
		return nil
	}
	return d.children(name, full)
}

func (d *dirTar) children(name, full string) error {
	entries, err := os.ReadDir(full) // sorted by name
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", full, err)
		}
		if err := d.add(path.Join(name, e.Name()), info); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirTar) header(name, full string, info fs.FileInfo, st *syscall.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	if !info.IsDir() && st.Nlink > 1 {
		id := fileID{uint64(st.Dev), st.Ino} //nolint:unconvert // its type differs between architectures
		if first, ok := d.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return h, nil
		}
		d.links[id] = name
	}
	if err := d.kind(h, full, info, st); err != nil {
		return nil, err
	}
	return h, d.xattrs(h, full)
}

// kind sets what depends on the type of the file.
func (d *dirTar) kind(h *tar.Header, full string, info fs.FileInfo, st *syscall.Stat_t) error {
	switch mode := info.Mode(); {
	case mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	case mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case mode&fs.ModeNamedPipe != 0:
		h.Typeflag = tar.TypeFifo
	case mode&fs.ModeDevice != 0:
		h.Typeflag = tar.TypeBlock
		if mode&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		rdev := uint64(st.Rdev) //nolint:unconvert // its type differs between architectures
		h.Devmajor, h.Devminor = int64(unix.Major(rdev)), int64(unix.Minor(rdev))
	default:
		return fmt.Errorf("%s: %w: file of type %v", full, ErrUnsupported, mode.Type())
	}
	return nil
}

// content writes a regular file, which has to be as long as it was.
func (d *dirTar) content(h *tar.Header, full string) error {
	// A name that has become a link or a pipe is not followed nor waited for.
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	if info, err := f.Stat(); err != nil {
		return err
	} else if !info.Mode().IsRegular() || info.Size() != h.Size {
		return fmt.Errorf("%s: %w", full, errChanged)
	}
	if err := d.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	n, err := io.Copy(d.tw, &ctxReader{d.ctx, io.LimitReader(f, h.Size)})
	if err == nil && n != h.Size {
		err = errChanged
	}
	if err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	return nil
}

// xattrs adds the extended attributes to a header.
func (d *dirTar) xattrs(h *tar.Header, full string) error {
	names, err := sized(func(buf []byte) (int, error) { return unix.Llistxattr(full, buf) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes of %s: %w", full, err)
	}
	for name := range strings.SplitSeq(string(names), "\x00") {
		if name == "" || slices.Contains(hostXattrs, name) {
			continue
		}
		if strings.Contains(name, "=") {
			return fmt.Errorf("%s: %w: a tar cannot hold the extended attribute %q", full, ErrUnsupported, name)
		}
		value, err := sized(func(buf []byte) (int, error) { return unix.Lgetxattr(full, name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue // listed, but not for everyone to read
		}
		if err != nil {
			return fmt.Errorf("read extended attribute %s of %s: %w", name, full, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+name] = string(value)
	}
	return nil
}

// sized makes a call that wants a buffer of the right size. The size may grow
// in between.
func sized(call func(buf []byte) (int, error)) ([]byte, error) {
	for {
		n, err := call(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = call(buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
