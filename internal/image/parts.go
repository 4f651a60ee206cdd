package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// opener opens n bytes at off of something.
type opener func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// parts is the store over one image whose manifest was made here.
type parts struct {
	bytes []byte
	desc  v1.Descriptor
	blobs map[digest.Digest]opener
	end   func() error
}

// assemble makes the store of an image from its configuration and its layers,
// of which blobs has the content.
func assemble(config []byte, layers []v1.Descriptor, blobs map[digest.Digest]opener, end func() error) (*parts, error) {
	blobs[digest.FromBytes(config)] = inMemory(config)
	data, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    layers,
	})
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return &parts{bytes: data, desc: desc, blobs: blobs, end: end}, nil
}

func inMemory(data []byte) opener {
	return inFile(func() (file, error) { return newMemory(data), nil })
}

// inFile opens the whole of a file.
func inFile(open func() (file, error)) opener {
	return func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		f, err := open()
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(f, off, n), f}, nil
	}
}

// manifest implements store.
func (p *parts) manifest(_ context.Context, reference string) ([]byte, v1.Descriptor, error) {
	if reference != "" && reference != p.desc.Digest.String() {
		return nil, v1.Descriptor{}, fmt.Errorf("%w: it has only %s", ErrNotFound, p.desc.Digest)
	}
	return p.bytes, p.desc, nil
}

// blob implements store.
func (p *parts) blob(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	open, ok := p.blobs[desc.Digest]
	if !ok {
		return nil, ErrNotFound
	}
	return open(ctx, off, n)
}

// referrers implements store: nothing can refer to a manifest made here.
func (p *parts) referrers(context.Context, digest.Digest, string) ([]v1.Descriptor, error) {
	return nil, nil
}

func (p *parts) close() error { return p.end() }
