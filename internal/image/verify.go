package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what is read into memory, in bytes.
const (
	maxManifest = 4 << 20 // as the distribution specification advises
	maxConfig   = 8 << 20
	maxIndex    = 16 << 20 // index.json of an OCI layout
)

// verified passes content through and reports its end only if it is what its
// descriptor says.
type verified struct {
	io.ReadCloser
	desc v1.Descriptor
	what string
	hash hash.Hash
	n    int64
	err  error
}

func verify(r io.ReadCloser, desc v1.Descriptor, what string) *verified {
	return &verified{ReadCloser: r, desc: desc, what: what, hash: desc.Digest.Algorithm().Hash()}
}

// Read implements io.Reader.
func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.ReadCloser.Read(p)
	v.n += int64(n)
	_, _ = v.hash.Write(p[:n]) // a hash never fails
	switch {
	case v.n > v.desc.Size:
		v.err = fmt.Errorf("%s: %w: more than the %d bytes of its descriptor", v.what, ErrCorrupt, v.desc.Size)
	case errors.Is(err, io.EOF):
		v.err = v.end()
	case err != nil:
		v.err = fmt.Errorf("%s: at byte %d: %w", v.what, v.n, err)
	}
	return n, v.err
}

func (v *verified) end() error {
	if v.n != v.desc.Size {
		return fmt.Errorf("%s: %w: %d bytes, its descriptor says %d", v.what, ErrCorrupt, v.n, v.desc.Size)
	}
	if got := digest.NewDigest(v.desc.Digest.Algorithm(), v.hash); got != v.desc.Digest {
		return fmt.Errorf("%s: %w: its content has digest %s", v.what, ErrCorrupt, got)
	}
	return io.EOF
}

// checkDescriptor refuses descriptors that nothing can be asked for with.
func checkDescriptor(desc v1.Descriptor) error {
	if err := checkDigest(desc.Digest); err != nil {
		return err
	}
	if desc.Size < 0 {
		return fmt.Errorf("%w: %s has a size of %d", ErrCorrupt, desc.Digest, desc.Size)
	}
	return nil
}

// readSmall reads a whole blob that has to fit in memory.
func readSmall(ctx context.Context, s store, desc v1.Descriptor, what string, limit int64) ([]byte, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if desc.Size > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d", what, ErrUnsupported, desc.Size, limit)
	}
	r, err := s.blob(ctx, desc, 0, desc.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	data, err := io.ReadAll(verify(r, desc, what))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return data, err
}

// readLimited reads at most limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errPermanent{fmt.Errorf("%w: more than %d bytes", ErrUnsupported, limit)}
	}
	return data, err
}
