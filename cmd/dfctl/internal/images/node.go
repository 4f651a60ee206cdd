package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/image"
)

// NodeView is what dfctl image inspect --node prints: what the snapshotter of
// this node knows of an image.
type NodeView struct {
	// Backend mounts images: erofs or fuse.
	Backend string      `json:"backend"`
	Images  []NodeImage `json:"images"`
}

// NodeImage is an image of the node.
type NodeImage struct {
	// Reference is empty if containerd has not asked for the image since the
	// snapshotter started.
	Reference string `json:"reference,omitempty"`
	Manifest  string `json:"manifest,omitempty"`
	// Lazy says that the image is mounted instead of pulled; if not, Reason says
	// why.
	Lazy      bool        `json:"lazy"`
	Reason    string      `json:"reason,omitempty"`
	TrustedBy string      `json:"trusted_by,omitempty"`
	LookedUp  *time.Time  `json:"looked_up,omitempty"`
	Mounts    []NodeMount `json:"mounts"`
}

// NodeMount is a mount of an image's layers, or of the lowest of them. Sizes are
// of the decoded content on its devices, in bytes.
type NodeMount struct {
	Chain        string `json:"chain"`
	Layers       uint32 `json:"layers"`
	Backend      string `json:"backend"`
	Directory    string `json:"directory"`
	PresentBytes int64  `json:"present_bytes"`
	TotalBytes   int64  `json:"total_bytes"`
}

// inspectNode asks the snapshotter for an image.
func (g *group) inspectNode(ctx context.Context, target daemon.Snapshotter, reference string) (_ *NodeView, err error) {
	c, err := target.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	view := &NodeView{Images: []NodeImage{}}
	for _, name := range namesOnNode(reference) {
		resp, err := c.ListImages(ctx, &apiv1.ListImagesRequest{Image: name})
		if err != nil {
			return nil, c.Explain(ctx, "ask for "+output.Clean(reference), err)
		}
		view.Backend = resp.Backend
		for _, im := range resp.Images {
			view.Images = append(view.Images, nodeImage(im))
		}
		if len(view.Images) > 0 {
			return view, nil
		}
	}
	return nil, exit.With(exit.NotFound, fmt.Errorf("%s: this node's snapshotter does not know it: nothing of it is mounted, and containerd has not asked for it since the snapshotter started; pull it, and see that containerd uses the snapshotter (dfctl doctor)", reference))
}

// namesOnNode returns what to ask the snapshotter for, the best first: digests,
// and names as it writes them.
func namesOnNode(reference string) []string {
	names := []string{reference}
	ref, err := image.Parse(reference)
	if err != nil || ref.Kind != image.KindRegistry {
		return names
	}
	if ref.Digest != "" {
		return []string{ref.Digest.String()}
	}
	return append([]string{ref.String()}, names...)
}

func nodeImage(im *apiv1.LazyImage) NodeImage {
	n := NodeImage{
		Reference: im.Reference, Manifest: im.Manifest, Lazy: im.Reason == "", Reason: im.Reason, TrustedBy: im.TrustedBy,
		Mounts: []NodeMount{},
	}
	if im.LookedUpUnix > 0 {
		at := time.Unix(im.LookedUpUnix, 0).UTC()
		n.LookedUp = &at
	}
	for _, m := range im.Mounts {
		n.Mounts = append(n.Mounts, NodeMount{
			Chain: m.Chain, Layers: m.Layers, Backend: m.Backend, Directory: m.Directory,
			PresentBytes: m.PresentBytes, TotalBytes: m.TotalBytes,
		})
	}
	slices.SortFunc(n.Mounts, func(a, b NodeMount) int { return int(b.Layers) - int(a.Layers) })
	return n
}

func (v *NodeView) write(w io.Writer, now time.Time) error {
	for i := range v.Images {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		if err := v.Images[i].write(w, now); err != nil {
			return err
		}
	}
	return nil
}

func (n *NodeImage) write(w io.Writer, now time.Time) error {
	lazy, asked := "yes", ""
	if !n.Lazy {
		lazy = "no: " + n.Reason
	}
	if n.LookedUp != nil {
		asked = output.Ago(now, *n.LookedUp)
	}
	err := output.WriteFields(w,
		[2]string{"image", n.Reference}, [2]string{"manifest", n.Manifest}, [2]string{"lazy", lazy},
		[2]string{"trusted by", n.TrustedBy}, [2]string{"looked up", asked},
	)
	if err != nil || len(n.Mounts) == 0 {
		return err
	}
	table := output.NewTable("LAYERS", "BACKEND", "PRESENT", "OF", "DIRECTORY")
	for _, m := range n.Mounts {
		table.Add(fmt.Sprint(m.Layers), m.Backend, fmt.Sprintf("%s (%d%%)", output.Bytes(m.PresentBytes), output.Percent(m.PresentBytes, m.TotalBytes)), output.Bytes(m.TotalBytes), m.Directory)
	}
	return table.Write(w)
}
