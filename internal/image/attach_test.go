package image

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const testType = "application/vnd.example.test"

// pushAll pushes blobs and manifests through a target, the parts first.
func pushAll(t *testing.T, target *Target, b blobs, root v1.Descriptor, tag string) {
	t.Helper()
	var doc document
	must(t, json.Unmarshal(b[root.Digest], &doc))
	for _, m := range doc.Manifests {
		pushAll(t, target, b, m, "")
	}
	parts := doc.Layers
	if doc.Config != nil {
		parts = append(parts, *doc.Config)
	}
	for _, desc := range parts {
		if _, err := target.PushBlob(t.Context(), BytesBlob(desc.MediaType, b[desc.Digest])); err != nil {
			t.Fatal(err)
		}
	}
	if tag == "attach" {
		return
	}
	if _, err := target.PushManifest(t.Context(), b[root.Digest], root.MediaType, tag); err != nil {
		t.Fatal(err)
	}
}

// attach pushes an artifact that refers to subject.
func attach(t *testing.T, target *Target, b blobs, artifact v1.Descriptor, tag string) {
	t.Helper()
	pushAll(t, target, b, artifact, "attach")
	desc, err := target.Attach(t.Context(), b[artifact.Digest], artifact.MediaType, tag)
	if err != nil {
		t.Fatal(err)
	}
	if desc.Digest != artifact.Digest || desc.Size != artifact.Size || desc.ArtifactType != testType {
		t.Errorf("attached %+v", desc)
	}
}

// eachTarget runs a test on the kinds of targets.
func eachTarget(t *testing.T, test func(t *testing.T, ref Ref)) {
	t.Run("registry with the API", func(t *testing.T) {
		test(t, newRegistry(t, registry.WithReferrersSupport(true)).ref(t, "a/b"))
	})
	t.Run("registry without", func(t *testing.T) { test(t, newRegistry(t).ref(t, "a/b")) })
	t.Run("layout", func(t *testing.T) { test(t, parse(t, "oci:"+t.TempDir()+"/new/layout")) })
}

func TestPushAndAttach(t *testing.T) {
	eachTarget(t, func(t *testing.T, ref Ref) {
		f := newFixture(t)
		target := openTarget(t, ref, pushOptions())
		pushAll(t, target, f.blobs, f.index, "v1")
		s := open(t, ref.WithTag("v1"), testOptions())
		list := images(t, s)
		if len(list) != 2 {
			t.Fatalf("%d images", len(list))
		}
		checkImage(t, f, list[0], f.amd)
		checkImage(t, f, list[1], f.arm)

		var want []digest.Digest
		for i, tag := range []string{"one", "two"} {
			artifact := f.artifact(t, testType, f.amd, f.add("application/vnd.example.data", noise(uint64(i+10), 500)))
			attach(t, target, f.blobs, artifact, tag)
			attach(t, target, f.blobs, artifact, tag) // again
			want = append(want, artifact.Digest)
			if _, desc, err := s.Manifest(t.Context(), tag); err != nil || desc.Digest != artifact.Digest {
				t.Errorf("tag %s: %+v, %v", tag, desc, err)
			}
		}
		got, err := s.Referrers(t.Context(), f.amd.Digest, testType)
		if err != nil || !slices.Equal(sorted(digests(got)), sorted(want)) {
			t.Errorf("referrers %v, %v; want %v", got, err, want)
		}
		if got, err := s.Referrers(t.Context(), f.arm.Digest, testType); err != nil || len(got) != 0 {
			t.Errorf("referrers of another: %v, %v", got, err)
		}
	})
}

func sorted(list []digest.Digest) []digest.Digest {
	slices.Sort(list)
	return list
}

func TestPushRefuses(t *testing.T) {
	eachTarget(t, func(t *testing.T, ref Ref) {
		target := openTarget(t, ref, testOptions())
		b := blobs{}
		desc := b.image(t, "amd64")
		data := b[desc.Digest]
		for name, tc := range map[string]struct {
			data           []byte
			mediaType, tag string
			want           error
		}{
			"not a manifest":     {[]byte("x"), desc.MediaType, "t", ErrCorrupt},
			"another media type": {data, v1.MediaTypeImageIndex, "t", ErrUnsupported},
			"too large":          {make([]byte, maxManifest+1), desc.MediaType, "t", ErrUnsupported},
			"bad tag":            {data, desc.MediaType, "../x y", nil},
		} {
			if _, err := target.PushManifest(t.Context(), tc.data, tc.mediaType, tc.tag); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := target.Attach(t.Context(), data, desc.MediaType, "t"); !errors.Is(err, ErrUnsupported) {
			t.Errorf("no subject: %v", err)
		}
		if _, err := target.Attach(t.Context(), b[b.artifact(t, testType, desc).Digest], desc.MediaType, ""); !errors.Is(err, ErrUnsupported) {
			t.Errorf("no tag: %v", err)
		}
	})
	for _, ref := range []string{"docker-archive:x.tar", "./dir"} {
		if _, err := OpenTarget(t.Context(), parse(t, ref), testOptions()); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// TestAttachBelievesTheHeader has a registry that says it has taken care.
func TestAttachBelievesTheHeader(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", "v1", f.blobs, f.amd)
	target := openTarget(t, r.ref(t, "a"), testOptions())
	artifact := f.artifact(t, testType, f.amd)
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/manifests/") {
			w.Header().Set("OCI-Subject", f.amd.Digest.String())
		}
		return false
	})
	attach(t, target, f.blobs, artifact, "x")
	if got := r.requests("referrers"); len(got) != 0 {
		t.Errorf("asked %q", got)
	}
	if got := r.requests(fallbackTag(f.amd.Digest)); len(got) != 0 {
		t.Errorf("asked %q", got)
	}
}

// TestFallbackAgainstOthers has somebody else write the fallback tag after us,
// who did not see our entry.
func TestFallbackAgainstOthers(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	ours := f.artifact(t, testType, f.amd, f.add("x/x", []byte("ours")))
	theirs := f.artifact(t, "application/vnd.example.theirs", f.amd, f.add("x/x", []byte("theirs")))
	r.put(t, "a", "v1", f.blobs, f.amd)
	theirs.Annotations = map[string]string{"kept": "yes"}
	tag := fallbackTag(f.amd.Digest)
	list := f.blobs.index(t, theirs)
	writes := 0
	r.setFault(func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/manifests/"+tag) {
			if writes++; writes == 2 { // between our write and our look at it
				r.inner.ServeHTTP(discardResponse{http.Header{}}, manifestPut(req, f.blobs[list.Digest]))
			}
		}
		return false
	})
	attach(t, openTarget(t, r.ref(t, "a"), testOptions()), f.blobs, ours, "x")
	s := open(t, r.ref(t, "a"), testOptions())
	got, err := s.Referrers(t.Context(), f.amd.Digest, "")
	if err != nil || !slices.Equal(sorted(digests(got)), sorted([]digest.Digest{ours.Digest, theirs.Digest})) {
		t.Errorf("referrers %v, %v", got, err)
	}
	for _, desc := range got {
		if desc.Digest == theirs.Digest && desc.Annotations["kept"] != "yes" {
			t.Errorf("their entry was changed: %+v", desc)
		}
	}
}

// TestFallbackWithStaleEntries has an index that lists what is gone, which the
// registry refuses to store again.
func TestFallbackWithStaleEntries(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	ours := f.artifact(t, testType, f.amd)
	gone := f.artifact(t, "application/vnd.example.gone", f.amd)
	r.put(t, "a", fallbackTag(f.amd.Digest), f.blobs, f.blobs.index(t, gone))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, r.URL+"/v2/a/manifests/"+gone.Digest.String(), nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	must(t, resp.Body.Close())
	attach(t, openTarget(t, r.ref(t, "a"), testOptions()), f.blobs, ours, "x")
	got, err := open(t, r.ref(t, "a"), testOptions()).Referrers(t.Context(), f.amd.Digest, "")
	if err != nil || !slices.Equal(digests(got), []digest.Digest{ours.Digest}) {
		t.Errorf("referrers %v, %v", got, err)
	}
}

// TestFallbackTagOfAnImage is not overwritten.
func TestFallbackTagOfAnImage(t *testing.T) {
	f := newFixture(t)
	r := newRegistry(t)
	r.put(t, "a", fallbackTag(f.amd.Digest), f.blobs, f.arm)
	target := openTarget(t, r.ref(t, "a"), testOptions())
	artifact := f.artifact(t, testType, f.amd)
	pushAll(t, target, f.blobs, artifact, "attach")
	if _, err := target.Attach(t.Context(), f.blobs[artifact.Digest], artifact.MediaType, "x"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v", err)
	}
}

func manifestPut(like *http.Request, data []byte) *http.Request {
	req := like.Clone(like.Context())
	req.Method = http.MethodPut
	req.Header = http.Header{"Content-Type": {v1.MediaTypeImageIndex}}
	req.Body, req.ContentLength = newBody(data), int64(len(data))
	return req
}

// discardResponse is a ResponseWriter for nobody.
type discardResponse struct{ h http.Header }

func (d discardResponse) Header() http.Header         { return d.h }
func (d discardResponse) Write(p []byte) (int, error) { return len(p), nil }
func (d discardResponse) WriteHeader(int)             {}
