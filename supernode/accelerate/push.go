package accelerate

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/origin"
)

// uploads is how many blobs are pushed at a time.
const uploads = 4

// push sends the index to the image's repository and notes how that went: it is
// offered from here in any case.
func (c *conversion) push(ctx context.Context, r *record) {
	err := c.pushAll(ctx, r)
	noted := *r
	noted.Pushed = err == nil
	if err != nil {
		noted.PushError = err.Error()
		c.a.o.Log.Warn("the index of an image could not be pushed", "repository", c.key.place.String(), "image", c.key.subject.String(), "error", err)
	}
	if err := c.a.note(r, &noted); err != nil {
		c.a.o.Log.Error("an accelerated image could not be stored", "repository", c.key.place.String(), "error", err)
	}
}

// note stores how the push of r went.
func (a *Accelerator) note(r, noted *record) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	r.Pushed, r.PushError = noted.Pushed, noted.PushError
	offered := a.table.images[r.key()] == r
	a.mu.Unlock()
	if !offered {
		return nil
	}
	return a.save(noted)
}

func (c *conversion) pushAll(ctx context.Context, r *record) (err error) {
	u, err := url.Parse(c.key.base)
	if err != nil {
		return err
	}
	if strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("%w: the registry is reached below a path, %s", image.ErrUnsupported, origin.RedactURL(c.key.base))
	}
	to := image.Ref{Kind: image.KindRegistry, Registry: u.Host, Repository: c.key.repo}
	target, err := image.OpenTarget(ctx, to, image.Options{
		Keychain: keychain{c.a.o.Keychain}, PlainHTTP: func(string) bool { return u.Scheme == "http" }, Log: c.a.o.Log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	blobs := make([]image.Blob, len(r.Blobs))
	for i, b := range r.Blobs {
		d, _ := b.ID.Digest()
		blobs[i] = image.FileBlob(artifact.Object{Digest: [32]byte(d), Size: b.Size}.Descriptor("application/octet-stream"), c.file(b.ID))
	}
	if _, err := target.PushBlobs(ctx, blobs, uploads); err != nil {
		return err
	}
	for _, e := range r.entries() {
		if _, err := target.Attach(ctx, e.data, v1.MediaTypeImageManifest, e.tag); err != nil {
			return err
		}
	}
	return nil
}

// keychain gives package image the supernode's credentials.
type keychain struct{ inner origin.Keychain }

// Resolve implements authn.Keychain.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain.
func (k keychain) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	if k.inner == nil {
		return authn.Anonymous, nil
	}
	c, ok, err := k.inner.Resolve(ctx, r.RegistryStr())
	if err != nil || !ok {
		return authn.Anonymous, err
	}
	if token, ok := strings.CutPrefix(c.Authorization, "Bearer "); ok {
		return authn.FromConfig(authn.AuthConfig{RegistryToken: token}), nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: c.Username, Password: c.Password}), nil
}
