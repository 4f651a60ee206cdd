package runtimetest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// lazyImage is an image in the form in which it is pushed, and what unpacks it.
type lazyImage struct {
	*image
	packed *packedImage
	// files are the content of what newBulk makes, by path.
	files map[string][]byte
}

// digest is that of the manifest.
func (img *image) digest() string { return digestOf(img.manifest) }

// newLazyImage makes an image of layers, packed in the ways that are given in
// turn. Its command prints greeting.
func newLazyImage(t *testing.T, repo string, layers [][]member, how ...packing) *lazyImage {
	t.Helper()
	img := &lazyImage{image: &image{repo: repo, tag: "v1", greeting: "greetings from " + repo + "\n", blobs: map[string][]byte{}}}
	img.packed = &packedImage{}
	base := []member{
		dir("bin"), file("bin/hello", string(helloProgram(t)), mode(0o755)), dir("etc"), file("etc/greeting", img.greeting),
	}
	layers = slices.Clone(layers)
	layers[0] = append(base, layers[0]...)
	for i, plain := range tarsOf(t, layers) {
		p := how[i%len(how)]
		img.packed.layers = append(img.packed.layers, p.pack(t, plain))
		img.packed.mediaTypes = append(img.packed.mediaTypes, p.mediaType())
		img.packed.diffIDs = append(img.packed.diffIDs, digestOf(plain))
	}
	img.seal(t)
	return img
}

func helloProgram(t *testing.T) []byte {
	t.Helper()
	hello, err := os.ReadFile(program(t, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	return hello
}

// seal makes the configuration and the manifest of the layers.
func (img *lazyImage) seal(t *testing.T) {
	t.Helper()
	c := v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Config: v1.Config{Cmd: []string{"/bin/hello"}}, RootFS: v1.RootFS{Type: "layers"},
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for i, packed := range img.packed.layers {
		h, err := v1.NewHash(img.packed.diffIDs[i])
		if err != nil {
			t.Fatal(err)
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, h)
		m.Layers = append(m.Layers, img.add(t, types.MediaType(img.packed.mediaTypes[i]), packed))
		img.layers = append(img.layers, digestOf(packed))
	}
	m.Config = img.add(t, types.OCIConfigJSON, marshal(t, c))
	img.manifest = marshal(t, m)
}

// newHard makes an image of three layers with all that layers can have.
func newHard(t *testing.T, repo string) *lazyImage {
	t.Helper()
	sparse := make([]byte, 3<<20)
	copy(sparse[1<<20:], random(5000, 11))
	copy(sparse[3<<20-100:], random(100, 12))
	const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return newLazyImage(t, repo, [][]member{{
		dir("data", mode(0o1777)), file("data/random", string(random(3<<20, 1)), mode(0o600), owner(1000, 100)),
		hard("data/same", "data/random"), file("data/even", strings.Repeat("compressible", 400_000)), file("data/sparse", string(sparse)),
		file("data/empty", ""), file("data/old", "old"), file("data/replaced", string(random(70_000, 2))),
		dir("data/hidden"), file("data/hidden/a", "a"), dir("data/hidden/below"), file("data/hidden/below/b", "b"),
		dir("gone"), file("gone/x", "x"), dir("sub"), dir("sub/dir"), file("sub/dir/f", "f"),
		file("bin/su", "#!", mode(0o4755)), file("bin/wall", "#!", mode(0o2755), owner(0, 5)), symlink("bin/hi", "hello"),
		file("bin/ping", "ping", mode(0o755), xattr("security.capability", capability), xattr("user.note", "with a space")),
		dir("dev"), special('3', "dev/null", 1, 3, mode(0o666)), special('4', "dev/sda", 8, 0), special('6', "dev/pipe", 0, 0),
		file("naïve \t name\xff", "odd"), symlink("long", strings.Repeat("target/", 100)),
		dir("xattrs", xattr("user.dir", "1"), xattr("trusted.note", "kept")),
	}, {
		dir("data", mode(0o1777)), whiteout("data/old"), file("data/replaced", string(random(90_000, 3))),
		file("data/even", strings.Repeat("compressible!", 300_000)), hard("data/third", "data/even"),
		dir("data/hidden", mode(0o700)), opaque("data/hidden"), file("data/hidden/new", "new"), whiteout("gone"),
		dir("sub", mode(0o700)), file("sub/dir", "a file now"), dir("more"), file("more/random", string(random(2<<20, 4))),
		file("sparse-all", string(make([]byte, 2<<20))),
	}, {
		dir("data", mode(0o755), owner(3, 3)), symlink("data/replaced", "random"), dir("top"), file("top/small", string(random(3000, 5))),
		file("top/repeat", string(random(2<<20, 4))), hard("top/again", "top/repeat"),
	}}, asGzip, asZstd, asGzip)
}

// newBulk makes an image of one layer with n files of size random bytes each.
func newBulk(t *testing.T, repo string, n, size int, seed uint64) *lazyImage {
	t.Helper()
	members, files := []member{dir("bulk")}, map[string][]byte{}
	for i := range n {
		name := fmt.Sprintf("bulk/%03d", i)
		files[name] = random(size, seed<<32+uint64(i))
		members = append(members, file(name, string(files[name])))
	}
	img := newLazyImage(t, repo, [][]member{members}, asTar)
	img.files = files
	return img
}

// site is a registry with images and their indexes, and a key that is trusted.
type lazySite struct {
	registry *dockerRegistry
	front    *front
	dir      string
	key      string // signs indexes
	trust    string // the policy that trusts it
}

// newLazySite runs a registry.
func newLazySite(t *testing.T) *lazySite {
	t.Helper()
	return newLazySiteAt(t, "127.0.0.1")
}

// newLazySiteAt runs a registry whose front has an address of this network.
func newLazySiteAt(t *testing.T, ip string) *lazySite {
	t.Helper()
	s := &lazySite{registry: startRegistry(t, ""), dir: t.TempDir()}
	s.front = newFrontAt(t, s.registry.url, ip)
	s.key, s.trust = filepath.Join(s.dir, "key.pem"), filepath.Join(s.dir, "trust.yaml")
	public := filepath.Join(s.dir, "public.pem")
	dfctl(t, "key", "create", "--out", s.key)
	dfctl(t, "key", "export", "--key", s.key, "--out", public)
	if err := os.WriteFile(s.trust, fmt.Appendf(nil, "keys: [%q]\n", public), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func dfctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t.Context(), program(t, "dfctl"), args...)
	if err != nil {
		t.Fatalf("dfctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// local is what dfctl, which needs no mirror, calls an image.
func (s *lazySite) local(img *image) string {
	return strings.TrimPrefix(s.registry.url, "http://") + "/" + img.repo + ":" + img.tag
}

// push stores an image and its index.
func (s *lazySite) push(t *testing.T, images ...*lazyImage) {
	t.Helper()
	for _, img := range images {
		img.push(t, s.registry.url)
		dfctl(t, "image", "convert", s.local(img.image), "--key", s.key, "--work-dir", t.TempDir())
	}
}

// cluster runs a supernode before the registry.
func (s *lazySite) cluster(t *testing.T, o clusterOptions) *cluster {
	t.Helper()
	return newCluster(t, s.front.URL, o)
}

// getManifest returns a manifest from the registry.
func (s *lazySite) getManifest(t *testing.T, repo, name string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.registry.url+"/v2/"+repo+"/manifests/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", string(types.OCIManifestSchema1)+","+string(types.OCIImageIndex))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := drain(resp)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("manifest %s of %s: %s, %v: %s", name, repo, resp.Status, err, body)
	}
	return bytes.Clone([]byte(body))
}
