package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// openDirectory reads a directory once to learn the digest of its layer.
func openDirectory(ctx context.Context, dir string, o *Options) (*parts, error) {
	if !isDir(dir) {
		return nil, fmt.Errorf("%w: no directory %s", ErrNotFound, dir)
	}
	hash := digest.SHA256.Digester()
	counted := &countingWriter{w: hash.Hash()}
	if err := writeTar(ctx, counted, dir, o.Log); err != nil {
		return nil, err
	}
	layer := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: hash.Digest(), Size: counted.n}
	config, err := json.Marshal(v1.Image{
		Platform: directoryPlatform(o),
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		if off != 0 || n != layer.Size {
			return nil, fmt.Errorf("%w: a part of a directory's layer", ErrUnsupported)
		}
		return newTarStream(ctx, dir), nil
	}
	return assemble(config, []v1.Descriptor{layer}, map[digest.Digest]opener{layer.Digest: open}, func() error { return nil })
}

// directoryPlatform is what a directory is said to be for: it does not tell.
func directoryPlatform(o *Options) v1.Platform {
	if len(o.Platforms) > 0 {
		return o.Platforms[0]
	}
	return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

type countingWriter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// tarStream is the tar of a directory, made while it is read.
type tarStream struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func newTarStream(ctx context.Context, dir string) *tarStream {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	s := &tarStream{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	silent := slog.New(slog.DiscardHandler) // Open has warned already
	go func() {
		defer close(s.done)
		defer stop()
		w.CloseWithError(writeTar(ctx, w, dir, silent)) // always nil
	}()
	return s
}

// Close ends the making and waits for it.
func (s *tarStream) Close() error {
	s.cancel()
	err := s.PipeReader.Close()
	<-s.done
	return err
}

// errChanged is what a file that changes while it is read gives.
var errChanged = errors.New("changed while it was read")
