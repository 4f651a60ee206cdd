package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const lockEvery = 50 * time.Millisecond

// layoutWriter is the sink over an OCI layout.
type layoutWriter struct {
	dir  string
	opts *Options
}

// newLayoutWriter makes what is missing of a layout.
func newLayoutWriter(ctx context.Context, dir string, o *Options) (*layoutWriter, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	w := &layoutWriter{dir: dir, opts: o}
	l := &layout{files: dirFiles(dir)}
	err := l.checkVersion()
	if !errors.Is(err, fs.ErrNotExist) {
		return w, err
	}
	return w, w.locked(ctx, func() error {
		if _, err := os.Stat(filepath.Join(dir, v1.ImageIndexFile)); errors.Is(err, fs.ErrNotExist) {
			if err := w.writeIndex(&v1.Index{}); err != nil {
				return err
			}
		}
		// Last, as the sign of a complete layout.
		return w.writeJSON(v1.ImageLayoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion})
	})
}

// locked runs f while nobody else changes index.json. The lock is on the
// directory itself, and ends with the process.
func (w *layoutWriter) locked(ctx context.Context, f func() error) (err error) {
	dir, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for {
		lerr := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if lerr == nil {
			return f()
		}
		if !errors.Is(lerr, unix.EWOULDBLOCK) && !errors.Is(lerr, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", w.dir, lerr)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for another process to leave %s: %w", w.dir, ctx.Err())
		case <-w.opts.After(lockEvery):
		}
	}
}

func (w *layoutWriter) writeIndex(index *v1.Index) error {
	index.Versioned = specs.Versioned{SchemaVersion: 2}
	index.MediaType = v1.MediaTypeImageIndex
	if index.Manifests == nil {
		index.Manifests = []v1.Descriptor{} // the list is required
	}
	return w.writeJSON(v1.ImageIndexFile, index)
}

func (w *layoutWriter) writeJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.write(name, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// write makes a file appear with all of its content or not at all.
func (w *layoutWriter) write(name string, fill func(f *os.File) error) (err error) {
	f, err := os.CreateTemp(w.dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()           // what matters is the error before
			_ = os.Remove(f.Name()) // or it stays, of no harm
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	full := filepath.Join(w.dir, filepath.FromSlash(name))
	if err := os.Rename(f.Name(), full); err != nil {
		return err
	}
	return syncDir(filepath.Dir(full))
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// hasBlob implements sink. A file of another length is none of ours, and is
// written anew.
func (w *layoutWriter) hasBlob(_ context.Context, desc v1.Descriptor) (bool, error) {
	info, err := os.Stat(filepath.Join(w.dir, filepath.FromSlash(blobName(desc.Digest))))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Mode().IsRegular() && info.Size() == desc.Size, err
}

// pushBlob implements sink.
func (w *layoutWriter) pushBlob(ctx context.Context, b Blob) (Pushed, error) {
	has, err := w.hasBlob(ctx, b.Descriptor)
	if err != nil || has {
		return Existed, err
	}
	if b.Handover != "" {
		if err := w.take(b); err == nil {
			return Uploaded, nil
		}
		// Another file system, or one without hard links: copying says what is
		// wrong if it is more than that.
	}
	r, err := b.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	content := verify(struct {
		io.Reader
		io.Closer
	}{&ctxReader{ctx, r}, r}, b.Descriptor, "its content")
	return Uploaded, w.write(blobName(b.Descriptor.Digest), func(f *os.File) error {
		return copyTo(f, content, b.Progress)
	})
}

// take makes a finished file the blob.
func (w *layoutWriter) take(b Blob) (err error) {
	f, err := os.Open(b.Handover)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != b.Descriptor.Size {
		return fmt.Errorf("%w: %s is no file of %d bytes", ErrCorrupt, b.Handover, b.Descriptor.Size)
	}
	name := filepath.Join(w.dir, filepath.FromSlash(blobName(b.Descriptor.Digest)))
	for _, step := range []func() error{
		func() error { return f.Chmod(0o644) },
		f.Sync,
		func() error { return os.Link(b.Handover, name) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(name))
}

// copyTo copies and tells of it. Nothing but progress is asked of the callback,
// so that the buffer is large.
func copyTo(f *os.File, r io.Reader, progress func(int64)) error {
	buf := make([]byte, 1<<20)
	for done := int64(0); ; {
		n, err := r.Read(buf)
		if _, werr := f.Write(buf[:n]); werr != nil {
			return werr
		}
		done += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		progress(done)
	}
}

// pushManifest implements sink.
func (w *layoutWriter) pushManifest(ctx context.Context, data []byte, desc v1.Descriptor, tag string) error {
	b := BytesBlob(desc.MediaType, data)
	b.Progress = func(int64) {}
	if _, err := w.pushBlob(ctx, b); err != nil || tag == "" {
		return err
	}
	return w.update(ctx, desc, tag)
}

// attach implements sink: that a layout's index lists the manifest is enough.
func (w *layoutWriter) attach(ctx context.Context, data []byte, desc v1.Descriptor, _ digest.Digest, tag string) error {
	return w.pushManifest(ctx, data, desc, tag)
}

// update gives a name to a manifest in index.json. What had the name stays as
// long as it has another.
func (w *layoutWriter) update(ctx context.Context, desc v1.Descriptor, tag string) error {
	desc.Annotations = cloneWith(desc.Annotations, v1.AnnotationRefName, tag)
	return w.locked(ctx, func() error {
		index, err := (&layout{files: dirFiles(w.dir)}).index()
		if err != nil {
			return err
		}
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
			name := d.Annotations[v1.AnnotationRefName]
			return name == tag || name == "" && d.Digest == desc.Digest
		})
		index.Manifests = append(index.Manifests, desc)
		return w.writeIndex(index)
	})
}

func cloneWith(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

func (w *layoutWriter) close() error { return nil }
