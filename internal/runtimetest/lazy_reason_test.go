package runtimetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

// newTiny makes a small image of its own content.
func newTiny(t *testing.T, repo string) *lazyImage {
	t.Helper()
	return newLazyImage(t, repo, [][]member{{dir("data"), file("data/x", repo)}}, asGzip)
}

// TestLazyReasons pulls images that cannot be mounted lazily: they are pulled the
// ordinary way and run, and why is in a label.
func TestLazyReasons(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	key, err := trust.Load(site.key)
	if err != nil {
		t.Fatal(err)
	}
	n := site.cluster(t, clusterOptions{}).lazyNode(t, "node-1", lazyOptions{trust: site.trust})
	for _, c := range []struct {
		name string
		// with makes the index that is no good, after the image was pushed.
		with func(img *lazyImage)
		want string // begins the reason
	}{
		// As the pause image of Kubernetes.
		{name: "no-index", with: func(*lazyImage) {}, want: "no-index"},
		{name: "unsigned", want: "untrusted", with: func(img *lazyImage) {
			dfctl(t, "image", "convert", site.local(img.image), "--no-sign")
		}},
		{name: "other-key", want: "untrusted", with: func(img *lazyImage) {
			other := filepath.Join(t.TempDir(), "other.pem")
			dfctl(t, "key", "create", "--out", other)
			dfctl(t, "image", "convert", site.local(img.image), "--key", other)
		}},
		{name: "wrong-signature", want: "untrusted", with: func(img *lazyImage) {
			dfctl(t, "image", "convert", site.local(img.image), "--no-sign")
			site.sign(t, img, key, func(data []byte) []byte { return forge(t, data) })
		}},
		{name: "other-image", want: "invalid", with: func(img *lazyImage) {
			site.push(t, newTiny(t, "team/donor"))
			site.borrow(t, newTiny(t, "team/donor"), img, key)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := newTiny(t, "team/"+c.name)
			img.push(t, site.registry.url)
			c.with(img)
			n.mustPull(t, img.image)
			n.checkLazy(t, img, 0)
			if got := n.reason(t, img, 1); !strings.HasPrefix(got, c.want) {
				t.Errorf("the reason is %q, want %q", got, c.want)
			}
			n.snapshotter.logged(t, "ordinary way", img.ref(), "code="+c.want)
			n.greet(t, img.image)
		})
	}
}

// indexOf returns the manifest with the indexes of an image.
func (s *lazySite) indexOf(t *testing.T, img *lazyImage) *artifact.Image {
	t.Helper()
	a, err := artifact.Parse(s.getManifest(t, img.repo, artifact.Tag(digest.Digest(img.digest()))))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// putIndex puts it in the place of what is there.
func (s *lazySite) putIndex(t *testing.T, img *lazyImage, a *artifact.Image) {
	t.Helper()
	data, _, err := a.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	s.putManifest(t, img.repo, artifact.Tag(digest.Digest(img.digest())), data)
}

func (s *lazySite) putManifest(t *testing.T, repo, tag string, data []byte) {
	t.Helper()
	send(t, http.StatusCreated, http.MethodPut, s.registry.url+"/v2/"+repo+"/manifests/"+tag, string(types.OCIManifestSchema1), data)
}

// sign puts a signature beside the indexes of an image, changed.
func (s *lazySite) sign(t *testing.T, img *lazyImage, key *trust.PrivateKey, change func([]byte) []byte) {
	t.Helper()
	_, desc, err := s.indexOf(t, img).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	data, _, err := key.Sign(desc)
	if err != nil {
		t.Fatal(err)
	}
	empty := []byte(artifact.EmptyConfig)
	blob := &lazyImage{image: &image{repo: img.repo, tag: artifact.SignatureTag(desc.Digest, key.ID()), blobs: map[string][]byte{digestOf(empty): empty}}}
	blob.manifest = change(data)
	blob.push(t, s.registry.url)
}

// forge changes the value of the longest annotation of a signature.
func forge(t *testing.T, data []byte) []byte {
	t.Helper()
	var m struct{ Annotations map[string]string }
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	longest := ""
	for _, v := range m.Annotations {
		if len(v) > len(longest) {
			longest = v
		}
	}
	swapped := strings.Map(func(r rune) rune {
		switch r {
		case 'A':
			return 'B'
		case 'B':
			return 'A'
		}
		return r
	}, longest)
	if swapped == longest {
		swapped = longest[1:2] + longest[:1] + longest[2:]
	}
	return bytes.Replace(data, []byte(longest), []byte(swapped), 1)
}

// borrow gives an image the signed indexes of another one.
func (s *lazySite) borrow(t *testing.T, from, to *lazyImage, key *trust.PrivateKey) {
	t.Helper()
	a := s.indexOf(t, from)
	copies := &lazyImage{image: &image{repo: to.repo, tag: "copies", blobs: map[string][]byte{}, manifest: to.manifest}}
	for _, l := range a.Layers {
		copies.blobs[l.Index.Digest.String()] = s.blob(t, from.repo, l.Index.Digest.String())
	}
	for _, b := range a.Blobs {
		copies.blobs[b.Digest.String()] = s.blob(t, from.repo, b.Digest.String())
	}
	empty := []byte(artifact.EmptyConfig)
	copies.blobs[digestOf(empty)] = empty
	copies.push(t, s.registry.url)
	a.Subject.Digest, a.Subject.Size = digest.Digest(to.digest()), int64(len(to.manifest))
	s.putIndex(t, to, a)
	s.sign(t, to, key, func(data []byte) []byte { return data })
}

// blob returns a blob of the registry.
func (s *lazySite) blob(t *testing.T, repo, d string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.registry.url+"/v2/"+repo+"/blobs/"+d, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || digestOf(data) != d {
		t.Fatalf("blob %s: %v", d, err)
	}
	return data
}

// TestLazyKinds mounts images of other kinds: with the tables of contents of
// eStargz, of many layers, and with ordinary layers above lazy ones.
func TestLazyKinds(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	many := newMany(t, "team/many", 24)
	below := newHard(t, "team/below")
	above := newAbove(t, "team/above", below)
	toc := newEStargz(t, "team/estargz")
	site.push(t, many, below)
	above.push(t, site.registry.url)
	toc.push(t, site.registry.url)
	want := overlayTrees(t, many, above, toc)
	delete(want[toc.repo], "stargz.index.json") // the table itself
	cluster := site.cluster(t, clusterOptions{})
	for _, b := range backends {
		t.Run(b, func(t *testing.T) {
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			check := func(img *lazyImage, lazy int) {
				t.Helper()
				n.mustPull(t, img.image)
				n.checkLazy(t, img, lazy)
				checkSame(t, img.repo, want[img.repo], walk(t, n.view(t, img, len(img.layers))))
			}
			check(many, 24)
			n.checkNotPulled(t, many)
			n.greet(t, many.image)
			check(toc, 1)
			n.mustPull(t, below.image)
			check(above, 3)
			if got := n.reason(t, above, 4); !strings.HasPrefix(got, "no-index") {
				t.Errorf("the reason of the ordinary layer is %q", got)
			}
			n.greet(t, above.image)
			n.greet(t, below.image)
		})
	}
}

// newMany makes an image of n layers that add, replace and remove.
func newMany(t *testing.T, repo string, n int) *lazyImage {
	t.Helper()
	layers := make([][]member, n)
	for i := range layers {
		layers[i] = []member{
			dir("all"), file("all/counter", fmt.Sprint(i)), file(fmt.Sprintf("all/%02d", i), string(random(20_000, uint64(i)))),
			dir(fmt.Sprintf("d%02d", i)), file(fmt.Sprintf("d%02d/f", i), "f"),
		}
		if i%3 == 2 {
			layers[i] = append(layers[i], whiteout(fmt.Sprintf("d%02d", i-1)), whiteout(fmt.Sprintf("all/%02d", i-2)))
		}
	}
	return newLazyImage(t, repo, layers, asGzip, asZstd)
}

// newAbove makes an image of another one's layers and one more.
func newAbove(t *testing.T, repo string, below *lazyImage) *lazyImage {
	t.Helper()
	img := &lazyImage{image: &image{repo: repo, tag: "v1", greeting: "greetings from above\n", blobs: map[string][]byte{}}, packed: &packedImage{
		layers: append([][]byte{}, below.packed.layers...), mediaTypes: append([]string{}, below.packed.mediaTypes...),
		diffIDs: append([]string{}, below.packed.diffIDs...),
	}}
	plain := tarsOf(t, [][]member{{
		dir("etc"), file("etc/greeting", img.greeting), dir("data"), whiteout("data/even"), file("data/above", "above"), whiteout("more"),
	}})[0]
	img.packed.layers = append(img.packed.layers, asGzip.pack(t, plain))
	img.packed.mediaTypes = append(img.packed.mediaTypes, asGzip.mediaType())
	img.packed.diffIDs = append(img.packed.diffIDs, digestOf(plain))
	img.seal(t)
	return img
}

// newEStargz makes an image of one layer with a table of contents, without an
// index of ours.
func newEStargz(t *testing.T, repo string) *lazyImage {
	t.Helper()
	from := indextest.EStargz(t, indextest.Files{"a": "a", "b": indextest.Noise(1, 300_000), "c": strings.Repeat("c", 100_000)})
	layers, err := from.Layers()
	if err != nil {
		t.Fatal(err)
	}
	stored, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(stored)
	if err != nil {
		t.Fatal(err)
	}
	diffID, err := layers[0].DiffID()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := from.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := from.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return &lazyImage{
		image: &image{
			repo: repo, tag: "v1", manifest: manifest, layers: []string{digestOf(layer)},
			blobs: map[string][]byte{digestOf(layer): layer, digestOf(config): config},
		},
		packed: &packedImage{layers: [][]byte{layer}, mediaTypes: []string{asGzip.mediaType()}, diffIDs: []string{diffID.String()}},
	}
}
