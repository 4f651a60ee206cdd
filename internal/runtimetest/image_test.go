package runtimetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image is an image in the form in which it is pushed, and what its root file
// system must be once it is unpacked.
type image struct {
	repo, tag string
	greeting  string // what its command prints
	manifest  []byte
	blobs     map[string][]byte // by digest
	layers    []string          // digests, lowest first
	tree      map[string]string // describes each file by its path
}

// entry is one entry of a layer. A directory's name ends in a slash.
type entry struct {
	name string
	mode int64
	data []byte
	link string // target of a symbolic link
	hard string // target of a hard link
}

// newImage makes an image of three layers whose upper ones replace and remove
// files of the lower ones. Its layers have about size bytes that do not
// compress. Images with different seeds share nothing but the program.
func newImage(t *testing.T, repo string, size int, seed uint64) *image {
	t.Helper()
	hello, err := os.ReadFile(program(t, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	img := &image{repo: repo, tag: "v1", blobs: map[string][]byte{}, tree: map[string]string{}}
	img.greeting = fmt.Sprintf("greetings from %s, image %d\n", repo, seed)
	img.build(t, [][]entry{{
		{name: "bin/", mode: 0o755},
		{name: "bin/hello", mode: 0o755, data: hello},
		{name: "bin/hi", link: "hello"},
		{name: "etc/", mode: 0o755},
		{name: "etc/greeting", mode: 0o644, data: []byte("to be replaced\n")},
		{name: "data/", mode: 0o1777},
		{name: "data/random", mode: 0o600, data: random(size/2, seed)},
		{name: "data/same", mode: 0o600, hard: "data/random"},
		{name: "data/even", mode: 0o444, data: bytes.Repeat([]byte("compressible"), 400_000)},
		{name: "data/old", mode: 0o644, data: random(1000, seed+1)},
		{name: "data/sub/", mode: 0o700},
		{name: "data/sub/hidden", mode: 0o644, data: []byte("hidden")},
	}, {
		{name: "data/", mode: 0o1777},
		{name: "data/.wh.old"},
		{name: "data/sub/", mode: 0o750},
		{name: "data/sub/.wh..wh..opq"},
		{name: "data/sub/seen", mode: 0o4755, data: []byte("seen")},
		{name: "etc/", mode: 0o755},
		{name: "etc/greeting", mode: 0o644, data: []byte(img.greeting)},
		{name: "data/more", mode: 0o644, data: random(size/2, seed+2)},
	}, {
		{name: "top/", mode: 0o755},
		{name: "top/empty", mode: 0o644},
		{name: "top/small", mode: 0o640, data: random(3000, seed+3)},
	}})
	return img
}

// random returns n bytes that are the same for the same seed.
func random(n int, seed uint64) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// build makes the blobs, the manifest and the tree.
func (img *image) build(t *testing.T, layers [][]entry) {
	t.Helper()
	config := v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Config: v1.Config{Cmd: []string{"/bin/hello"}}, RootFS: v1.RootFS{Type: "layers"},
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, entries := range layers {
		plain, packed := layerOf(t, entries)
		img.apply(entries)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, hashOf(t, plain))
		manifest.Layers = append(manifest.Layers, img.add(t, types.OCILayer, packed))
		img.layers = append(img.layers, digestOf(packed))
	}
	manifest.Config = img.add(t, types.OCIConfigJSON, marshal(t, config))
	img.manifest = marshal(t, manifest)
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func hashOf(t *testing.T, b []byte) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(digestOf(b))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (img *image) add(t *testing.T, mediaType types.MediaType, blob []byte) v1.Descriptor {
	t.Helper()
	img.blobs[digestOf(blob)] = blob
	return v1.Descriptor{MediaType: mediaType, Digest: hashOf(t, blob), Size: int64(len(blob))}
}

// layerOf packs entries into a tar archive, plain and compressed.
func layerOf(t *testing.T, entries []entry) (plain, packed []byte) {
	t.Helper()
	var buf, zipped bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Typeflag: tar.TypeReg}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
		case e.hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.hard
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	zw, err := gzip.NewWriterLevel(&zipped, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := zw.Write(buf.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), zipped.Bytes()
}

// apply changes the expected tree by a layer.
func (img *image) apply(entries []entry) {
	for _, e := range entries {
		name := strings.TrimSuffix(e.name, "/")
		dir, base := path.Split(name)
		switch hidden, isWhiteout := strings.CutPrefix(base, ".wh."); {
		case base == ".wh..wh..opq":
			for p := range img.tree {
				if strings.HasPrefix(p, dir) {
					delete(img.tree, p)
				}
			}
		case isWhiteout:
			delete(img.tree, dir+hidden)
		case e.hard != "":
			img.tree[name] = img.tree[e.hard]
		case e.link != "":
			img.tree[name] = "link to " + e.link
		case name != e.name:
			img.tree[name] = fmt.Sprintf("directory %o", e.mode)
		default:
			img.tree[name] = fmt.Sprintf("file %o %s", e.mode, digestOf(e.data))
		}
	}
}

// treeOf describes a directory in the way of image.tree.
func treeOf(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		tree[rel], err = describe(name, d)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func describe(name string, d fs.DirEntry) (string, error) {
	info, err := d.Info()
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("%s: no stat", name)
	}
	mode := st.Mode & 0o7777
	switch {
	case d.Type() == fs.ModeSymlink:
		target, err := os.Readlink(name)
		return "link to " + target, err
	case d.IsDir():
		return fmt.Sprintf("directory %o", mode), nil
	case d.Type().IsRegular():
		data, err := os.ReadFile(name)
		return fmt.Sprintf("file %o %s", mode, digestOf(data)), err
	}
	return d.Type().String(), nil
}

// ref is how runtimes call the image.
func (img *image) ref() string { return registryName + "/" + img.repo + ":" + img.tag }

// size is the size of all blobs in bytes.
func (img *image) size() int64 {
	n := int64(0)
	for _, b := range img.blobs {
		n += int64(len(b))
	}
	return n
}

// push stores the image in a registry, whose URL may have a user and password.
func (img *image) push(t *testing.T, registry string) {
	t.Helper()
	base := registry + "/v2/" + img.repo
	for digest, blob := range img.blobs {
		at := send(t, http.StatusAccepted, http.MethodPost, base+"/blobs/uploads/", "", nil)
		to, err := url.Parse(at.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		from, err := url.Parse(registry)
		if err != nil {
			t.Fatal(err)
		}
		to.User = from.User
		q := to.Query()
		q.Set("digest", digest)
		to.RawQuery = q.Encode()
		send(t, http.StatusCreated, http.MethodPut, to.String(), "application/octet-stream", blob)
	}
	send(t, http.StatusCreated, http.MethodPut, base+"/manifests/"+img.tag, string(types.OCIManifestSchema1), img.manifest)
}

// send makes a request that must be answered with the status want. It returns
// the answer's header.
func send(t *testing.T, want int, method, rawURL, contentType string, body []byte) http.Header {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, rawURL, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := drain(resp); err != nil || resp.StatusCode != want {
		t.Fatalf("%s %s: %s, %v: %s", method, rawURL, resp.Status, err, text)
	}
	return resp.Header
}
