package images

import (
	"context"

	"github.com/opencontainers/go-digest"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/lazymount"
)

// profile asks dfdaemon for what mounts of an image have read first.
func profile(ctx context.Context, c *daemon.Client, manifest digest.Digest) ([]lazymount.Group, error) {
	doing := "ask for what the cluster has learned of " + manifest.String()
	resp, err := c.Profile(ctx, &apiv1.ProfileRequest{Image: manifest.String()})
	if err != nil {
		return nil, c.Explain(ctx, doing, err)
	}
	groups := make([]lazymount.Group, 0, len(resp.Accesses))
	for _, a := range resp.Accesses {
		g, err := groupOf(a.Blob, a.Group)
		if err != nil {
			continue // what other nodes say is only advice
		}
		groups = append(groups, g)
	}
	return groups, nil
}
