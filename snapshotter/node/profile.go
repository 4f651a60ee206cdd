package node

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
)

// Access is one group of a blob that was read.
type Access struct {
	Blob  digest.Digest
	Group int
}

// Profile returns what other mounts of an image have read first, in the order in
// which to fetch it; nothing if nobody knows.
func (c *Client) Profile(ctx context.Context, image digest.Digest) ([]Access, error) {
	var resp *apiv1.ProfileResponse
	err := unary(ctx, func(ctx context.Context) (err error) {
		resp, err = c.api.Profile(ctx, &apiv1.ProfileRequest{Image: image.String()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask for the profile of %s: %w", image, err)
	}
	accesses := make([]Access, len(resp.Accesses))
	for i, a := range resp.Accesses {
		accesses[i] = Access{digest.Digest(a.Blob), int(a.Group)}
	}
	return accesses, nil
}

// ReportAccess tells what a mount of an image has read first, in order.
func (c *Client) ReportAccess(ctx context.Context, image digest.Digest, accesses []Access) error {
	r := &apiv1.ReportAccessRequest{Image: image.String()}
	for _, a := range accesses {
		r.Accesses = append(r.Accesses, &apiv1.Access{Blob: a.Blob.String(), Group: uint32(a.Group)}) // #nosec G115 -- a group's number
	}
	err := unary(ctx, func(ctx context.Context) error {
		_, err := c.api.ReportAccess(ctx, r)
		return err
	})
	if err != nil {
		return fmt.Errorf("report what was read of %s: %w", image, err)
	}
	return nil
}

// Info is what a daemon says about itself.
type Info struct {
	Version, Name string
	// Connected is whether it has a supernode.
	Connected bool
	// TrustKeys are the public keys, in PEM, that the supernode vouches for images
	// with.
	TrustKeys [][]byte
}

// Info asks the daemon about itself, once.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var resp *apiv1.InfoResponse
	err := unary(ctx, func(ctx context.Context) (err error) {
		resp, err = c.api.Info(ctx, &apiv1.InfoRequest{})
		return err
	})
	if err != nil {
		return Info{}, fmt.Errorf("ask dfdaemon what it is: %w", err)
	}
	return Info{resp.Version, resp.Name, resp.Connected, resp.TrustKeys}, nil
}
