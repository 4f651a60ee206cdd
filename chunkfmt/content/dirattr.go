package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"context"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sys/unix"
)

var fileTypes = map[chunkfmt.Kind]uint32{
	chunkfmt.Dir:         unix.S_IFDIR,
	chunkfmt.File:        unix.S_IFREG,
	chunkfmt.Symlink:     unix.S_IFLNK,
	chunkfmt.CharDevice:  unix.S_IFCHR,
	chunkfmt.BlockDevice: unix.S_IFBLK,
	chunkfmt.Fifo:        unix.S_IFIFO,
	chunkfmt.Socket:      unix.S_IFSOCK,
}

func typeName(t uint32) string {
	switch t {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %#o", t)
}

// attributes compares everything about an object but content and children,
// whose types are equal.
func (v *dirVerifier) attributes(x *object) error {
	n, a := &v.tree.Inodes[x.inode], v.tree.Attr(x.inode)
	type pair struct{ what, got, want string }
	var pairs []pair
	// The kernel has no permissions for symbolic links: all file systems show
	// 0777.
	if a.Kind != chunkfmt.Symlink {
		pairs = append(pairs, pair{"mode", octal(x.st.Mode & 0o7777), octal(uint32(a.Mode))})
	}
	pairs = append(pairs,
		pair{"owner", owner(x.st.Uid, x.st.Gid), owner(a.UID, a.GID)},
		pair{"mtime", stamp(x.st.Mtim.Unix()), stamp(n.Mtime, int64(n.Nsec))},
	)
	switch a.Kind {
	case chunkfmt.Dir:
		if x.st.Nlink != 1 {
			pairs = append(pairs, pair{"links", number(uint64(x.st.Nlink)), number(uint64(n.Nlink))})
		}
	case chunkfmt.File:
		pairs = append(pairs, pair{"size", number(uint64(x.st.Size)), number(uint64(n.Size))}) //nolint:gosec // G115: not negative
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		major, minor := unix.Major(uint64(x.st.Rdev)), unix.Minor(uint64(x.st.Rdev))
		pairs = append(pairs, pair{"device", owner(major, minor), owner(uint32(n.Size>>32), uint32(n.Size))}) //nolint:gosec // G115: two numbers of 32 bits
	case chunkfmt.Symlink:
		target, err := readlink(x.dir, x.name)
		if err != nil {
			return fmt.Errorf("reading the link /%s: %w", x.path, err)
		}
		pairs = append(pairs, pair{"target", strconv.Quote(target), strconv.Quote(v.tree.Target(x.inode))})
	}
	if a.Kind != chunkfmt.Dir {
		pairs = append(pairs, pair{"links", number(uint64(x.st.Nlink)), number(uint64(n.Nlink))})
	}
	for _, p := range pairs {
		if p.got == p.want {
			continue
		}
		if err := v.differ(x.path, p.what, p.got, p.want); err != nil {
			return err
		}
	}
	return v.xattrs(x)
}

func octal(mode uint32) string   { return fmt.Sprintf("%04o", mode) }
func number(n uint64) string     { return strconv.FormatUint(n, 10) }
func owner(a, b uint32) string   { return fmt.Sprintf("%d:%d", a, b) }
func stamp(sec, ns int64) string { return time.Unix(sec, ns).UTC().Format(time.RFC3339Nano) }

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, chunkfmt.MaxPath+1)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// madeUp reports extended attributes that a directory may have although
// nobody put them there: labels of security modules and what network file
// systems show.
func madeUp(name string) bool {
	switch name {
	case "security.selinux", "security.ima", "security.evm", "security.apparmor",
		"system.nfs4_acl", "system.cifs_acl":
		return true
	}
	return strings.HasPrefix(name, "security.SMACK64")
}

// xattrs compares the extended attributes.
func (v *dirVerifier) xattrs(x *object) error {
	got, err := x.xattrs()
	if err != nil {
		return fmt.Errorf("listing the extended attributes of /%s: %w", x.path, err)
	}
	for _, want := range v.tree.XattrsOf(x.inode) {
		value, ok := got[want.Name]
		delete(got, want.Name)
		if ok && value == want.Value || v.ignores(want.Name) {
			continue
		}
		text := "nothing"
		if ok {
			text = quote(value)
		}
		if err := v.differ(x.path, "xattr "+want.Name, text, quote(want.Value)); err != nil {
			return err
		}
	}
	for name, value := range got {
		if madeUp(name) || v.ignores(name) {
			continue
		}
		if err := v.differ(x.path, "xattr "+name, quote(value), "nothing"); err != nil {
			return err
		}
	}
	return nil
}

func (v *dirVerifier) ignores(name string) bool {
	return v.o.IgnoreXattr != nil && v.o.IgnoreXattr(name)
}

func quote(value string) string {
	const most = 64
	if len(value) > most {
		return fmt.Sprintf("%q… (%d bytes)", value[:most], len(value))
	}
	return strconv.Quote(value)
}

// xattrs returns the extended attributes by name. The calls for them want a
// path, and the object's own may be too long.
func (x *object) xattrs() (map[string]string, error) {
	p := fmt.Sprintf("/proc/self/fd/%d/%s", x.dir, x.name)
	list, err := grown(func(b []byte) (int, error) { return unix.Llistxattr(p, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil || len(list) == 0 {
		return nil, err
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := grown(func(b []byte) (int, error) { return unix.Lgetxattr(p, name, b) })
		switch {
		case errors.Is(err, unix.EINVAL):
			// A value that the kernel does not show: capabilities that are
			// none, say.
			value = []byte("unreadable: " + err.Error())
		case err != nil:
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[name] = string(value)
	}
	return all, nil
}

// grown calls f with a larger buffer until it suffices. The largest that the
// kernel accepts is 64 KiB.
func grown(f func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, min(size, 1<<16))
		n, err := f(buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < 1<<16 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// content compares what an open file has with the digests of its chunks, or
// with its inline bytes.
func (v *dirVerifier) content(ctx context.Context, x *object, fd int) error {
	if inline, ok := v.tree.InlineData(x.inode); ok {
		got := make([]byte, len(inline))
		if err := preadFull(fd, got, 0); err != nil {
			return fmt.Errorf("reading /%s: %w", x.path, err)
		}
		if !slices.Equal(got, inline) {
			return v.differ(x.path, "content", "other bytes", "those of the index")
		}
		return nil
	}
	buf := make([]byte, min(x.st.Size, 256<<10))
	for off, c := range v.tree.Content(x.inode) {
		got, err := digestAt(ctx, fd, off, int64(c.Length), buf)
		if err != nil {
			return fmt.Errorf("reading /%s: %w", x.path, err)
		}
		if got != c.Digest {
			return v.differ(x.path, "content", fmt.Sprintf("digest %s of the %d bytes at %d", got, c.Length, off), c.Digest.String())
		}
	}
	return nil
}

// digestAt hashes n bytes of a file.
func digestAt(ctx context.Context, fd int, off, n int64, buf []byte) (chunkfmt.Digest, error) {
	h := sha256.New()
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return chunkfmt.Digest{}, err
		}
		p := buf[:min(n, int64(len(buf)))]
		if err := preadFull(fd, p, off); err != nil {
			return chunkfmt.Digest{}, err
		}
		h.Write(p)
		off += int64(len(p))
		n -= int64(len(p))
	}
	return chunkfmt.Digest(h.Sum(nil)), nil
}

func preadFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
