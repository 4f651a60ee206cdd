package snapshots

import (
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

var (
	diffA  = digest.FromString("a")
	diffB  = digest.FromString("b")
	chainB = identity.ChainID([]digest.Digest{diffA, diffB})
)

func TestCheckChain(t *testing.T) {
	for _, c := range []struct {
		name   string
		labels map[string]string
		parent string
		ok     bool
	}{
		{"lowest layer", map[string]string{labelTarget: diffA.String(), labelDiffID: diffA.String()}, "", true},
		{"lowest layer of containerd 1.6", map[string]string{labelTarget: diffA.String()}, "", true},
		{"second layer", map[string]string{labelTarget: chainB.String(), labelDiffID: diffB.String(), labelParent: diffA.String()}, diffA.String(), true},
		{"second layer of containerd 1.6", map[string]string{labelTarget: chainB.String()}, diffA.String(), true},
		{"no digest", map[string]string{labelTarget: "x"}, "", false},
		{"unknown algorithm", map[string]string{labelTarget: "md5:d41d8cd98f00b204e9800998ecf8427e"}, "", false},
		{"diff ID is none", map[string]string{labelTarget: diffA.String(), labelDiffID: "x"}, "", false},
		{"another layer's chain ID", map[string]string{labelTarget: diffB.String(), labelDiffID: diffA.String()}, "", false},
		{"lowest layer on another", map[string]string{labelTarget: diffB.String(), labelDiffID: diffB.String()}, diffA.String(), false},
		{"another parent", map[string]string{labelTarget: chainB.String(), labelParent: diffA.String()}, diffB.String(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := checkChain(c.labels, c.parent); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestUpdated(t *testing.T) {
	info := snapshots.Info{Labels: map[string]string{
		LabelRemote: remoteValue, LabelPrefix + "index": "i", labelTarget: "t", "a": "1", "b": "2",
	}}
	kept := map[string]string{LabelRemote: remoteValue, LabelPrefix + "index": "i", labelTarget: "t"}
	with := func(more map[string]string) map[string]string {
		out := maps.Clone(kept)
		maps.Copy(out, more)
		return out
	}
	for _, c := range []struct {
		name  string
		want  map[string]string
		paths []string
		out   map[string]string // nil: refused
	}{
		{"all labels", map[string]string{"c": "3"}, nil, with(map[string]string{"c": "3"})},
		{"all labels by name", map[string]string{"c": "3"}, []string{"labels"}, with(map[string]string{"c": "3"})},
		{"ours among all", map[string]string{LabelRemote: "x", LabelPrefix + "index": "j", LabelPrefix + "new": "k", labelTarget: "u"}, nil, kept},
		{"one label", map[string]string{"a": "9", "b": "8"}, []string{"labels.a"}, with(map[string]string{"a": "9", "b": "2"})},
		{"ours as it is", map[string]string{LabelRemote: remoteValue}, []string{"labels." + LabelRemote}, info.Labels},
		{"ours", map[string]string{LabelRemote: "x"}, []string{"labels." + LabelRemote}, nil},
		{"a new one of ours", map[string]string{LabelReason: "x"}, []string{"labels." + LabelReason}, nil},
		{"target of a lazy layer", map[string]string{labelTarget: "x"}, []string{"labels." + labelTarget}, nil},
		{"another field", nil, []string{"parent"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := updated(info, c.want, c.paths)
			if (err != nil) != (c.out == nil) || !maps.Equal(out, c.out) {
				t.Errorf("got %v, %v; want %v", out, err, c.out)
			}
		})
	}
}

func TestLazyLabelsTakeNothingOfOursFromOutside(t *testing.T) {
	sent := map[string]string{LabelRemote: "x", LabelPrefix + "index": "forged", labelTarget: "t"}
	got, err := lazyLabels(sent, Decision{Labels: map[string]string{LabelPrefix + "other": "o"}})
	want := map[string]string{LabelRemote: remoteValue, LabelPrefix + "other": "o", labelTarget: "t"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []map[string]string{
		{"x": "y"}, {LabelRemote: "y"}, {LabelReason: "y"}, {LabelPrefix + "long": strings.Repeat("x", 4096)},
	} {
		if got, err := lazyLabels(sent, Decision{Labels: bad}); err == nil {
			t.Errorf("got %v", got)
		}
	}
}

func TestReasonFitsInALabel(t *testing.T) {
	for _, detail := range []string{strings.Repeat("ä", 5000), "x" + strings.Repeat("ä", 5000), "\xff\xfe" + strings.Repeat("x", 5000)} {
		got := ordinaryLabels(map[string]string{LabelReason: "forged"}, Reason{"code", detail})[LabelReason]
		if len(got) > maxReason || len(got) < maxReason-4 || !utf8.ValidString(got) || !strings.HasPrefix(got, "code: ") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}
