package debimage

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// writer makes an OCI layout.
type writer struct {
	dir      string
	manifest v1.Manifest
	config   v1.Image
}

// newWriter makes a layout whose image has what config says, but for layers.
func newWriter(dir string, config v1.Image) (*writer, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	config.History = nil
	config.RootFS = v1.RootFS{Type: "layers"}
	return &writer{
		dir:      dir,
		manifest: v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest},
		config:   config,
	}, nil
}

// layer adds a directory as a gzip layer. Of an overlay's upper directory,
// whiteouts become those of OCI.
func (w *writer) layer(ctx context.Context, root string, overlay bool) error {
	return w.stream(ctx, func(to io.Writer) error {
		t := &treeTar{root: root, overlay: overlay, out: tar.NewWriter(to), links: map[uint64]string{}}
		return errors.Join(filepath.WalkDir(root, t.add), t.out.Close())
	})
}

// stream adds the tar that write writes as a gzip layer.
func (w *writer) stream(ctx context.Context, write func(io.Writer) error) error {
	return w.add(v1.MediaTypeImageLayerGzip, func(to io.Writer) (digest.Digest, error) {
		gzip := exec.CommandContext(ctx, "gzip", "-6", "-n")
		gzip.Stdout, gzip.Stderr = to, os.Stderr
		in, err := gzip.StdinPipe()
		if err != nil {
			return "", err
		}
		if err := gzip.Start(); err != nil {
			return "", fmt.Errorf("start gzip: %w", err)
		}
		plain := sha256.New()
		buffered := bufio.NewWriterSize(io.MultiWriter(in, plain), 1<<20)
		err = errors.Join(write(buffered), buffered.Flush(), in.Close(), gzip.Wait())
		return digestOf(plain), err
	})
}

// plain adds the tar that write writes as it is.
func (w *writer) plain(write func(io.Writer) error) error {
	return w.add(v1.MediaTypeImageLayer, func(to io.Writer) (digest.Digest, error) {
		plain := sha256.New()
		buffered := bufio.NewWriterSize(io.MultiWriter(to, plain), 1<<20)
		err := errors.Join(write(buffered), buffered.Flush())
		return digestOf(plain), err
	})
}

// add adds the layer that pack writes; pack returns the digest of its tar.
func (w *writer) add(mediaType string, pack func(io.Writer) (digest.Digest, error)) (err error) {
	f, err := os.CreateTemp(w.dir, "layer")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	packed := sha256.New()
	plain, err := pack(io.MultiWriter(f, packed))
	if err != nil {
		return fmt.Errorf("pack a layer: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.manifest.Layers = append(w.manifest.Layers, v1.Descriptor{MediaType: mediaType, Digest: digestOf(packed), Size: info.Size()})
	w.config.RootFS.DiffIDs = append(w.config.RootFS.DiffIDs, plain)
	return os.Rename(f.Name(), w.blob(digestOf(packed)))
}

func digestOf(h hash.Hash) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(h.Sum(nil)))
}

func (w *writer) blob(d digest.Digest) string {
	return filepath.Join(w.dir, "blobs", "sha256", d.Encoded())
}

// finish writes what stands above the layers.
func (w *writer) finish() error {
	var err error
	if w.manifest.Config, err = w.document(v1.MediaTypeImageConfig, w.config); err != nil {
		return err
	}
	manifest, err := w.document(v1.MediaTypeImageManifest, w.manifest)
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{v1.AnnotationRefName: "latest"}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return err
	}
	layout := []byte(`{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`)
	return errors.Join(
		os.WriteFile(filepath.Join(w.dir, v1.ImageLayoutFile), layout, 0o644),
		os.WriteFile(filepath.Join(w.dir, v1.ImageIndexFile), index, 0o644),
	)
}

func (w *writer) document(mediaType string, v any) (v1.Descriptor, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
	return d, os.WriteFile(w.blob(d.Digest), p, 0o644)
}

// treeTar writes a directory as a tar.
type treeTar struct {
	root    string
	overlay bool
	out     *tar.Writer
	links   map[uint64]string // inode number: first path
}

func (t *treeTar) add(path string, entry fs.DirEntry, err error) error {
	if err != nil || path == t.root {
		return err
	}
	name, err := filepath.Rel(t.root, path)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if t.overlay && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return t.out.WriteHeader(&tar.Header{Name: filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), Typeflag: tar.TypeReg, Mode: 0o644})
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil
	}
	if err := t.write(path, name, entry, &st); err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	if t.overlay && entry.IsDir() && xattr(path, "trusted.overlay.opaque") == "y" {
		return t.out.WriteHeader(&tar.Header{Name: filepath.Join(name, ".wh..wh..opq"), Typeflag: tar.TypeReg, Mode: 0o644})
	}
	return nil
}

func (t *treeTar) write(path, name string, entry fs.DirEntry, st *unix.Stat_t) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{} // images do not carry them
	if info.IsDir() {
		h.Name += "/"
	}
	if v := xattr(path, "security.capability"); v != "" {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": v}
	}
	if st.Nlink > 1 && info.Mode().IsRegular() {
		if first, ok := t.links[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.out.WriteHeader(h)
		}
		t.links[st.Ino] = name
	}
	if err := t.out.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(t.out, f)
	return err
}

// xattr returns an attribute of a path, and "" if it has none of this name.
func xattr(path, name string) string {
	var value [256]byte
	n, err := unix.Lgetxattr(path, name, value[:])
	if err != nil {
		return ""
	}
	return strings.Clone(string(value[:n]))
}
