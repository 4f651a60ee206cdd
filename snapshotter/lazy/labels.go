package lazy

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Labels that containerd gives to snapshots of layers: see its package
// pkg/snapshotters.
const (
	labelImage    = "containerd.io/snapshot/cri.image-ref"
	labelManifest = "containerd.io/snapshot/cri.manifest-digest"
	labelLayer    = "containerd.io/snapshot/cri.layer-digest"
)

// Labels of lazy layers.
const (
	// LabelIndex is the digest of the layer's index.
	LabelIndex = snapshots.LabelPrefix + "index"
	// LabelRepository is where the layer's blobs are, HOST/REPOSITORY.
	LabelRepository = snapshots.LabelPrefix + "repository"
	// LabelManifest is the digest of the manifest of the image that the layer was
	// pulled for.
	LabelManifest = snapshots.LabelPrefix + "manifest"
	// LabelDevices are the keys of the devices with the layer's content, in
	// hexadecimal, separated by commas: the first maxDevices of them.
	LabelDevices = snapshots.LabelPrefix + "devices"
	// LabelTrusted says who vouches for the index. Of one that is bound nobody but
	// the author of the image does (docs/trust.md).
	LabelTrusted = snapshots.LabelPrefix + "trusted-by"
)

// maxDevices of them fit in a label.
const maxDevices = 60

// request is what containerd says about a layer that it is about to fetch.
type request struct {
	chain    digest.Digest
	ref      image.Ref
	manifest digest.Digest // "" from containerd 1.6
	layer    digest.Digest // "" if unknown
}

// parseRequest reads the labels of a snapshot. Anybody may have written them.
func parseRequest(chain string, labels map[string]string) (request, error) {
	r := request{chain: digest.Digest(chain)}
	var err error
	if r.ref, err = parseImage(labels[labelImage]); err != nil {
		return r, err
	}
	for label, to := range map[string]*digest.Digest{labelManifest: &r.manifest, labelLayer: &r.layer} {
		v := labels[label]
		if v == "" {
			continue
		}
		if *to, err = digest.Parse(v); err != nil {
			return r, fmt.Errorf("label %s: %w", label, err)
		}
		if to.Algorithm() != digest.SHA256 {
			return r, fmt.Errorf("label %s: %s digests are not supported", label, to.Algorithm())
		}
	}
	return r, nil
}

// parseImage reads the name of an image in a registry. What image.Parse would
// look for in the file system is made a name first.
func parseImage(name string) (image.Ref, error) {
	if name == "" {
		return image.Ref{}, errors.New("containerd does not say which image it is: set disable_snapshot_annotations = false (CRI) or enable_remote_snapshot_annotations (transfer service)")
	}
	first, rest, ok := strings.Cut(name, "/")
	switch {
	case strings.HasPrefix(name, "/"), strings.HasPrefix(name, "."), strings.HasPrefix(name, "sha256:"),
		strings.HasPrefix(name, "oci:"), strings.HasPrefix(name, "docker-archive:"):
		return image.Ref{}, fmt.Errorf("image %.200q is not in a registry", name)
	case !ok:
		name = "docker.io/library/" + first
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		name = "docker.io/" + first + "/" + rest
	}
	ref, err := image.Parse(name)
	if err != nil {
		return image.Ref{}, fmt.Errorf("image %.200q: %w", name, err)
	}
	if ref.Kind != image.KindRegistry {
		return image.Ref{}, fmt.Errorf("image %.200q is not in a registry", name)
	}
	return ref, nil
}

// repository is HOST/REPOSITORY of a reference to a registry, as users write it.
func repository(r image.Ref) string {
	host := r.Registry
	if host == "index.docker.io" {
		host = "docker.io"
	}
	return host + "/" + r.Repository
}

// layerLabels are the labels of a lazy layer.
func layerLabels(im *known, l knownLayer) map[string]string {
	var keys []string
	for _, k := range l.devices[:min(len(l.devices), maxDevices)] {
		keys = append(keys, hex.EncodeToString(k[:]))
	}
	return map[string]string{
		LabelIndex: l.index.String(), LabelRepository: im.repository, LabelManifest: im.manifest.String(),
		LabelDevices: strings.Join(keys, ","), LabelTrusted: im.trustedBy,
	}
}

// devicesIn returns the keys in a label.
func devicesIn(label string) []device.Key {
	var keys []device.Key
	for s := range strings.SplitSeq(label, ",") {
		if k, err := chunkfmt.ParseDigest("sha256:" + s); err == nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// chainOf returns the chain that lazy layers make up, lowest first.
func chainOf(layers []snapshots.Layer) Chain {
	var c Chain
	for _, l := range layers {
		c.ID = digest.Digest(l.ChainID)
		c.Manifest = digest.Digest(l.Labels[LabelManifest])
		c.Layers = append(c.Layers, Layer{
			Index: digest.Digest(l.Labels[LabelIndex]), Repository: l.Labels[LabelRepository],
		})
	}
	return c
}

// chains returns the chain IDs of an image's layers, by which containerd names
// their snapshots.
func chains(diffIDs []digest.Digest) []digest.Digest {
	return identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
}
