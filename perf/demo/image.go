package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// pushGo makes an image of the Go toolchain's files, programs in one layer and
// sources in the other, and puts it into our registry. dir is for temporary
// files.
func pushGo(ctx context.Context, s *source, blobs registry.BlobHandler, dir string, layerSize int64) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go's files: %w", err)
	}
	put, ok := blobs.(registry.BlobPutHandler)
	if !ok {
		return errors.New("the registry takes no blobs")
	}
	root := os.DirFS(strings.TrimSpace(string(out)))
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	conf := v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"}}
	for _, dirs := range [][]string{{"bin", "pkg/tool"}, {"src"}} {
		layer, err := packLayer(ctx, dir, root, dirs, layerSize)
		if err != nil {
			return fmt.Errorf("pack a layer: %w", err)
		}
		err = errors.Join(put.Put(ctx, s.repo, layer.digest, layer.file), layer.file.Close(), os.Remove(layer.file.Name()))
		if err != nil {
			return fmt.Errorf("push layer %s: %w", layer.digest, err)
		}
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: types.OCILayer, Size: layer.size, Digest: layer.digest})
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, layer.diff)
	}
	raw, err := json.Marshal(conf)
	if err != nil {
		return fmt.Errorf("encode the config: %w", err)
	}
	if manifest.Config, err = putBytes(ctx, put, s.repo, types.OCIConfigJSON, raw); err != nil {
		return err
	}
	if raw, err = json.Marshal(manifest); err != nil {
		return fmt.Errorf("encode the manifest: %w", err)
	}
	return putManifest(ctx, s, raw)
}

func putBytes(ctx context.Context, put registry.BlobPutHandler, repo string, mt types.MediaType, content []byte) (v1.Descriptor, error) {
	sum := sha256.Sum256(content)
	d := v1.Descriptor{MediaType: mt, Size: int64(len(content)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	if err := put.Put(ctx, repo, d.Digest, io.NopCloser(bytes.NewReader(content))); err != nil {
		return d, fmt.Errorf("push blob %s: %w", d.Digest, err)
	}
	return d, nil
}

func putManifest(ctx context.Context, s *source, raw []byte) error {
	url := s.scheme + "://" + s.host + "/v2/" + s.repo + "/manifests/" + s.ref
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("push the manifest: %w", err)
	}
	req.Header.Set("Content-Type", string(types.OCIManifestSchema1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("push the manifest: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("push the manifest: %s", resp.Status)
	}
	return nil
}

// layerFile is a packed layer: a tar archive, compressed.
type layerFile struct {
	file         *os.File // at its start
	size         int64
	digest, diff v1.Hash // of the file, and of the archive in it
}

// packLayer packs files below dirs, up to limit bytes, into a file in dir.
// The caller closes it.
func packLayer(ctx context.Context, dir string, root fs.FS, dirs []string, limit int64) (_ *layerFile, err error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	packed, plain := sha256.New(), sha256.New()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, packed), gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	p := &packer{ctx: ctx, root: root, tw: tar.NewWriter(io.MultiWriter(zw, plain)), left: limit}
	for _, dir := range dirs {
		if err := fs.WalkDir(root, dir, p.visit); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(p.tw.Close(), zw.Close()); err != nil {
		return nil, err
	}
	l := &layerFile{file: f, digest: hashOf(packed), diff: hashOf(plain)}
	if l.size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return l, err
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// packer writes the files it visits into an archive.
type packer struct {
	ctx  context.Context
	root fs.FS
	tw   *tar.Writer
	left int64 // bytes of files that still fit
}

// visit is a fs.WalkDirFunc. A directory that does not exist is passed over: not
// every installation of Go has all of them.
func (p *packer) visit(name string, d fs.DirEntry, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case p.ctx.Err() != nil:
		return p.ctx.Err()
	case d.IsDir() || !d.Type().IsRegular():
		return nil
	}
	if info, err := d.Info(); err != nil || info.Size() > p.left {
		return err // too large for what is left; a smaller one may fit
	}
	content, err := fs.ReadFile(p.root, name)
	if err != nil {
		return err
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: "usr/local/go/" + name, Size: int64(len(content)),
		Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
	}
	if !strings.HasPrefix(name, "src") {
		h.Mode = 0o755
	}
	if len(h.Name) > 100 {
		h.Format = tar.FormatPAX
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	p.left -= h.Size
	_, err = p.tw.Write(content)
	return err
}
