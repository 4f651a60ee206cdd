package runtimetest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// The snapshotters of containerd that layers are unpacked with. What native
// makes is the model: it unpacks each layer into a copy of what the layers
// below have made. overlayfs unpacks each layer for itself; it must agree except
// where a case says why, and is the model for the times of directories, which
// native does not keep when it copies.
const (
	native  = "native"
	overlay = "overlayfs"
)

// packings that the layers of a case take turns in.
var packings = []packing{asGzip, asZstd, asTar, asMembers, asFrames, asSkippable}

// TestUnpack compares what containerd makes of layers that are hard to unpack
// with what is mounted from our images of them.
func TestUnpack(t *testing.T) {
	needMounts(t)
	c := startContainerd(t, "unpack", "", keepViews)
	cases, ran, inPlace := unpackCases(), 0, 0
	for i, u := range cases {
		t.Run(u.name, func(t *testing.T) {
			ran++
			tars := tarsOf(t, u.layers)
			if top := len(tars) - 1; u.tail != nil {
				tars[top] = append(tars[top][:len(tars[top])-1024], u.tail...)
			}
			u.run(t, c, tars, packed(t, tars, i))
		})
		inPlace += u.inPlace
	}
	if ran == len(cases) && inPlace == 0 {
		t.Error("no layer was indexed in place")
	}
}

func needMounts(t *testing.T) {
	t.Helper()
	testenv.Integration(t)
	testenv.Root(t)
	testenv.Kernel(t, 6, 12)
	for _, name := range []string{"containerd", "ctr", "mount"} {
		testenv.Tool(t, name)
	}
}

// packed packs tars, each in another way.
func packed(t *testing.T, tars [][]byte, turn int) *packedImage {
	t.Helper()
	p := &packedImage{}
	for i, plain := range tars {
		how := packings[(turn+i)%len(packings)]
		p.layers = append(p.layers, how.pack(t, plain))
		p.mediaTypes = append(p.mediaTypes, how.mediaType())
		p.diffIDs = append(p.diffIDs, digestOf(plain))
	}
	return p
}

// run compares what containerd and we make of an image whose layers' tars are
// given.
func (u *unpackCase) run(t *testing.T, c *containerd, tars [][]byte, p *packedImage) {
	t.Helper()
	good := len(tars)
	if u.refused != "" {
		good--
		u.checkRefused(t, c, p)
	}
	if good == 0 {
		return
	}
	models := u.model(t, c, p, tars[:good])
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) { u.check(t, v, p, models) })
	}
}

// check compares what we make of every prefix of the layers with the models.
func (u *unpackCase) check(t *testing.T, v variant, p *packedImage, models []model) {
	b, err := v.build(t, p, len(models))
	if err != nil {
		t.Fatal(err)
	}
	u.inPlace += b.inPlace
	for i, m := range models {
		tree, err := b.merge(i + 1)
		if err != nil {
			t.Fatalf("merge %d layers: %v", i+1, err)
		}
		for how, at := range map[string]string{"mounted": b.mount(t, tree), "exported": b.export(t, tree)} {
			got := walk(t, at)
			if i == len(models)-1 && u.differs != "" {
				u.checkWanted(t, at)
				continue
			}
			report(t, fmt.Sprintf("%s, %d layers", how, i+1), differences(m.tree, got, func(name string, f field, want, _ object) bool {
				return want[f] == unknown || slices.Contains(u.unlike[name], f)
			}))
		}
		if u.differs == "" {
			u.verify(t, tree, m)
		}
		if failures, err := content.VerifyBlobs(t.Context(), tree, b, content.VerifyOptions{}); err != nil || len(failures) > 0 {
			t.Errorf("VerifyBlobs of %d layers: %v, %v", i+1, failures, err)
		}
	}
}

func (u *unpackCase) checkWanted(t *testing.T, at string) {
	t.Helper()
	for name, want := range u.want {
		got, err := os.ReadFile(filepath.Join(at, name))
		if want == none && !errors.Is(err, fs.ErrNotExist) || want != none && (err != nil || string(got) != want) {
			t.Errorf("%s is %q, %v; want %q, as %s", name, got, err, want, u.differs)
		}
	}
}

// verify has VerifyDir compare containerd's directory with the tree.
func (u *unpackCase) verify(t *testing.T, tree *chunkfmt.Tree, m model) {
	t.Helper()
	all, err := content.VerifyDir(t.Context(), tree, m.dir, content.DirOptions{IgnoreRoot: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		what, _, _ := strings.Cut(d.What, " ")
		f := map[string]field{"mtime": fMtime, "links": fLinks, "same": fSame, "owner": fOwner, "xattr": fXattrs}[what]
		kept, tracked := m.kept[d.Path][f]
		if m.tree[d.Path] == nil || (kept || !tracked) && !slices.Contains(u.unlike[d.Path], f) {
			t.Errorf("VerifyDir: %s", d)
		}
	}
}

func (u *unpackCase) checkRefused(t *testing.T, c *containerd, p *packedImage) {
	t.Helper()
	if err := c.unpack(t, p, len(p.layers), native); err == nil {
		t.Errorf("containerd has unpacked it with native snapshots in spite of: %s", u.refused)
	} else {
		t.Logf("containerd: %v", err)
	}
	if err := c.unpack(t, p, len(p.layers), overlay); (err == nil) != (u.overlay != "") {
		t.Errorf("containerd with overlayfs: %v; that differs from native: %q", err, u.overlay)
	}
	for _, v := range variants {
		b, err := v.build(t, p, len(p.layers))
		if err == nil {
			_, err = b.merge(len(p.layers))
		}
		if err == nil {
			t.Errorf("%s: we accept it in spite of: %s", v.name, u.refused)
			continue
		}
		for _, part := range append(u.names, "layer") {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error lacks %q: %v", v.name, part, err)
			}
		}
		if v.name == variants[0].name {
			t.Logf("we: %v", err)
		}
	}
}

// model is what containerd makes of the layers.
type model struct {
	tree map[string]object // what does not follow from the layers is unknown
	dir  string            // the native snapshot
	// kept are fields of the snapshot that are what they were when it was
	// unpacked.
	kept map[string]map[field]bool
}

// model has containerd unpack the layers and returns what it makes of each
// prefix.
func (u *unpackCase) model(t *testing.T, c *containerd, p *packedImage, tars [][]byte) []model {
	t.Helper()
	if err := c.unpack(t, p, len(tars), native); err != nil {
		t.Fatal(err)
	}
	overlays := u.overlay == "" || u.refused != ""
	if err := c.unpack(t, p, len(tars), overlay); overlays && err != nil {
		t.Fatalf("containerd with overlayfs: %v", err)
	} else if err != nil {
		t.Logf("containerd with overlayfs: %v", err)
	}
	models := make([]model, len(tars))
	for n := range tars {
		m := &models[n]
		m.dir = c.view(t, p, n+1, native)
		m.tree = walk(t, m.dir)
		forgetTimes(m.tree, touchedBy(t, tars[n]))
		if n > 0 {
			forgetLinks(m.tree)
		}
		m.keep()
		if !overlays {
			continue
		}
		other := walk(t, c.view(t, p, n+1, overlay))
		var layers []touched
		for _, plain := range tars[:n+1] {
			layers = append(layers, touchedBy(t, plain))
		}
		report(t, fmt.Sprintf("overlayfs of %d layers", n+1), differences(m.tree, other, func(_ string, f field, want, _ object) bool {
			return f == fLinks || f == fSame || want[f] == unknown
		}))
		takeTimes(m.tree, other, layers)
	}
	return models
}

// keep remembers which fields of the snapshot are known.
func (m *model) keep() {
	m.kept = map[string]map[field]bool{}
	for name, o := range m.tree {
		m.kept[name] = map[field]bool{}
		for _, f := range []field{fMtime, fLinks, fSame} {
			m.kept[name][f] = o[f] != unknown
		}
	}
}

// unknown stands for a field that does not follow from the layers.
const unknown = "?"

// forgetTimes drops the times of directories that the uppermost layer does not
// list: native's copies do not have them.
func forgetTimes(tree map[string]object, top touched) {
	for name, o := range tree {
		if o[fType] == typeDir && !top.listed[name] {
			o[fMtime] = unknown
		}
	}
}

// takeTimes takes the times of directories from an overlayfs mount where the
// uppermost layer that has something to do with the directory lists it.
func takeTimes(tree, other map[string]object, layers []touched) {
	for name, o := range tree {
		if o[fType] != typeDir || o[fMtime] != unknown || other[name] == nil {
			continue
		}
		for i := len(layers) - 1; i >= 0; i-- {
			if layers[i].listed[name] {
				o[fMtime] = other[name][fMtime]
			}
			if layers[i].listed[name] || layers[i].used[name] {
				break
			}
		}
	}
}

// forgetLinks drops the link counts of special files: native copies each name
// of theirs as a file of its own.
func forgetLinks(tree map[string]object) {
	for _, o := range tree {
		if o[fType] != typeDir && o[fType] != typeFile {
			o[fLinks], o[fSame] = unknown, unknown
		}
	}
}
