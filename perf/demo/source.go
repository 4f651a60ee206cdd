package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
)

// source is the image and where it comes from: a registry of ours, or its own.
type source struct {
	name   string // as the user knows it
	scheme string
	host   string // of the registry, as clients name it
	repo   string
	ref    string // tag or digest

	// The rest is set for a registry of ours only.
	srv    *http.Server
	served chan error
	sent   atomic.Int64 // bytes of bodies
}

// openSource returns the image that the options name, or builds one and starts
// a registry for it.
func openSource(ctx context.Context, o options, dir string, log io.Writer) (*source, error) {
	if o.reference == nil {
		return serveImage(ctx, dir, o.layerSize, log)
	}
	repo := o.reference.Context()
	s := &source{name: o.image, scheme: repo.Scheme(), host: repo.RegistryStr(), repo: repo.RepositoryStr(), ref: o.reference.Identifier()}
	if s.host == name.DefaultRegistry {
		s.host = "docker.io" // as container runtimes call it
	}
	return s, nil
}

// allow is what the daemons need to be told of the registry.
func (s *source) allow() string {
	if s.scheme == "http" {
		return s.host + "=http://" + s.host
	}
	return s.host
}

func serveImage(ctx context.Context, dir string, layerSize int64, log io.Writer) (*source, error) {
	blobs := filepath.Join(dir, "registry")
	if err := os.Mkdir(blobs, 0o755); err != nil {
		return nil, fmt.Errorf("start a registry: %w", err)
	}
	handler := registry.NewDiskBlobHandler(blobs)
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a registry: %w", err)
	}
	s := &source{scheme: "http", host: lis.Addr().String(), repo: "demo/go", ref: "latest", served: make(chan error, 1)}
	s.name = s.host + "/" + s.repo + ":" + s.ref
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.srv = &http.Server{
		Handler:           s.count(registry.New(registry.WithBlobHandler(handler), registry.Logger(quiet))),
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() { s.served <- s.srv.Serve(lis) }()
	_, _ = fmt.Fprintln(log, "making an image of Go's own files")
	if err := pushGo(ctx, s, handler, dir, layerSize); err != nil {
		return nil, errors.Join(fmt.Errorf("make an image: %w", err), s.close())
	}
	s.sent.Store(0)
	return s, nil
}

// count counts what the registry sends.
func (s *source) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&countingWriter{ResponseWriter: w, n: &s.sent}, r)
	})
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// close stops the registry, if it is ours.
func (s *source) close() error {
	if s.srv == nil {
		return nil
	}
	err := s.srv.Close()
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
