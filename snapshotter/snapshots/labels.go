package snapshots

import (
	"fmt"
	"maps"
	"strings"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// Labels of snapshots that only this package sets.
const (
	// LabelPrefix begins all labels of ours but LabelRemote.
	LabelPrefix = "containerd.io/snapshot/damselfly."
	// LabelReason says why a layer is not lazy.
	LabelReason = LabelPrefix + "reason"
	// LabelRemote marks lazy snapshots, by the convention of other snapshotters with
	// the value "remote snapshot".
	LabelRemote = "containerd.io/snapshot/remote"
)

// Labels that containerd sets, see its package core/unpack.
const (
	labelTarget = "containerd.io/snapshot.ref"
	labelDiffID = "containerd.io/snapshot/diff-id"
	labelParent = "containerd.io/snapshot/parent-chain-id"
	labelImage  = "containerd.io/snapshot/cri.image-ref"
)

const (
	remoteValue = "remote snapshot"
	// maxReason bounds the value of LabelReason: containerd takes 4096 bytes for
	// name and value.
	maxReason = 1024
	// lazyPrefix begins the names of lazy snapshots that were committed by Prepare.
	// Containerd's own names have a slash behind its namespace, and no namespace
	// has a colon.
	lazyPrefix = "lazy:"
)

func lazyName(chainID string) string { return lazyPrefix + chainID }

// isLazy reports whether a snapshot is a lazy layer: committed, or staged.
func isLazy(info snapshots.Info) bool { return info.Labels[LabelRemote] == remoteValue }

func isOurs(label string) bool {
	return label == LabelRemote || strings.HasPrefix(label, LabelPrefix)
}

// isKept reports whether Update leaves a label of a snapshot as it is.
func isKept(info snapshots.Info, label string) bool {
	return isOurs(label) || isLazy(info) && (label == labelTarget || label == labelParent)
}

// foreign returns the labels that are not ours.
func foreign(all map[string]string) map[string]string {
	out := make(map[string]string, len(all))
	for k, v := range all {
		if !isOurs(k) {
			out[k] = v
		}
	}
	return out
}

// lazyLabels returns the labels of a lazy layer.
func lazyLabels(sent map[string]string, d Decision) (map[string]string, error) {
	out := foreign(sent)
	for k, v := range d.Labels {
		if !strings.HasPrefix(k, LabelPrefix) || k == LabelReason {
			return nil, fmt.Errorf("label %q is not one for lazy layers: %w", k, errdefs.ErrInvalidArgument)
		}
		if err := labels.Validate(k, v); err != nil {
			return nil, err
		}
		out[k] = v
	}
	out[LabelRemote] = remoteValue
	return out, nil
}

// ordinaryLabels returns the labels of an ordinary layer.
func ordinaryLabels(sent map[string]string, r Reason) map[string]string {
	out := foreign(sent)
	out[LabelReason] = truncate(strings.ToValidUTF8(r.String(), "?"), maxReason)
	return out
}

// truncate cuts s to at most n bytes, between characters.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// inherit gives to a committed snapshot's labels those of ours that the active
// one had.
func inherit(sent, active map[string]string) map[string]string {
	out := foreign(sent)
	for k, v := range active {
		if isOurs(k) {
			out[k] = v
		}
	}
	return out
}

// updated returns the labels that info has after an update to want, of all labels
// or of those that fieldpaths name.
func updated(info snapshots.Info, want map[string]string, fieldpaths []string) (map[string]string, error) {
	if len(fieldpaths) == 0 {
		fieldpaths = []string{"labels"}
	}
	out := maps.Clone(info.Labels)
	if out == nil {
		out = map[string]string{}
	}
	for _, path := range fieldpaths {
		name, one := strings.CutPrefix(path, "labels.")
		switch {
		case one && isKept(info, name):
			if want[name] != info.Labels[name] {
				return nil, fmt.Errorf("label %q of snapshot %q is not yours to change: %w", name, info.Name, errdefs.ErrInvalidArgument)
			}
		case one:
			out[name] = want[name]
		case path == "labels":
			maps.DeleteFunc(out, func(k, _ string) bool { return !isKept(info, k) })
			for k, v := range want {
				if !isKept(info, k) {
					out[k] = v
				}
			}
		default:
			return nil, fmt.Errorf("field %q of snapshot %q cannot be changed: %w", path, info.Name, errdefs.ErrInvalidArgument)
		}
	}
	return out, nil
}

// checkChain verifies that the labels of a layer whose parent has the chain ID
// parent ("" for none) agree with each other.
func checkChain(sent map[string]string, parent string) error {
	chain, err := digest.Parse(sent[labelTarget])
	if err != nil {
		return fmt.Errorf("%s %q: %w", labelTarget, sent[labelTarget], err)
	}
	if said := sent[labelParent]; said != "" && said != parent {
		return fmt.Errorf("the layer below has the chain ID %q, containerd says %q", parent, said)
	}
	if sent[labelDiffID] == "" {
		return nil // containerd 1.6
	}
	diff, err := digest.Parse(sent[labelDiffID])
	if err != nil {
		return fmt.Errorf("%s %q: %w", labelDiffID, sent[labelDiffID], err)
	}
	want := diff
	if parent != "" {
		want = identity.ChainID([]digest.Digest{digest.Digest(parent), diff})
	}
	if want != chain {
		return fmt.Errorf("chain ID %s does not belong to diff ID %s on %q", chain, diff, parent)
	}
	return nil
}
