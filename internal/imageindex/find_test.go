package imageindex_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

// What cannot be read hides nothing that can: a registry that fails is not one
// that has no index.
func TestFindPastFailures(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
	for _, part := range []string{"/referrers/", "/manifests/damselfly-sha256-", "/manifests/damselfly-" + key.ID(), "/nothing"} {
		s.Fail(part, http.StatusForbidden)
		checkContent(t, ref, trusting(t, key), merged)
	}
	s.Fail("/manifests/damselfly-", http.StatusForbidden)
	checkContent(t, ref, trusting(t, key), merged)

	s.Intercept(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") && !strings.Contains(r.URL.Path, "/manifests/damselfly-") {
			return false
		}
		http.Error(w, "failed by the test", http.StatusForbidden)
		return true
	})
	if _, _, err := find(t, ref, trusting(t, key)); !errors.Is(err, image.ErrDenied) || errors.Is(err, imageindex.ErrNoIndex) {
		t.Errorf("nothing can be read: %v", err)
	}
}

func TestFindReadsPastABrokenCandidate(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
	// Another artifact takes the tag, and is then not to be read.
	other := convert(t, ref, ref, imageindex.ConvertOptions{Build: build.Options{InlineMax: -1}})
	s.Fail("/manifests/"+other[0].Artifact, http.StatusForbidden)
	checkContent(t, ref, trusting(t, key), merged)
	s.Fail("/blobs/sha256", http.StatusForbidden)
	if _, err := imageindex.Resolve(t.Context(), open(t, ref), first); !errors.Is(err, image.ErrDenied) {
		t.Errorf("without its configuration: %v", err)
	}
}

// The tag of an image's index is enough: a node asks for nothing else.
func TestFindAsksLittle(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, _ := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
	src := open(t, ref)
	r, err := imageindex.Resolve(t.Context(), src, first)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Requests()
	if _, err := imageindex.Find(t.Context(), src, r, trusting(t, key)); err != nil {
		t.Fatal(err)
	}
	if n := s.Requests() - before; n > 3 {
		t.Errorf("%d requests for an artifact and its signature", n)
	}
}

func TestFindTheArtifactThatIsNamed(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, merged := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	old := convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
	convert(t, ref, ref, imageindex.ConvertOptions{Key: key, Build: build.Options{InlineMax: -1}})
	named := ref.WithDigest(digest.Digest(old[0].Artifact))
	l := checkContent(t, named, trusting(t, key), merged)
	if got := l.Descriptor.Digest.String(); got != old[0].Artifact {
		t.Errorf("found %s, asked for %s", got, old[0].Artifact)
	}
	signature := ref.WithTag(artifact.SignatureTag(named.Digest, key.ID()))
	if _, err := imageindex.Resolve(t.Context(), open(t, signature), first); !errors.Is(err, image.ErrUnsupported) || !strings.Contains(err.Error(), "signature") {
		t.Errorf("a signature: %v", err)
	}
}

// A registry that does not answer holds nobody longer than the context.
func TestFindEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := indextest.NewRegistry(t, true)
	layers, _ := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	src := open(t, ref)
	r, err := imageindex.Resolve(t.Context(), src, first)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.Intercept(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		cancel()
		<-r.Context().Done()
		return true
	})
	if _, err := imageindex.Find(ctx, src, r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	s, key := indextest.NewRegistry(t, true), newKey(t)
	layers, _ := layersV1()
	ref := put(t, s, "app", indextest.Image(t, "amd64", layers...))
	convert(t, ref, ref, imageindex.ConvertOptions{Key: key})
	for _, tt := range []struct {
		name   string
		change func(*imageindex.Found)
		limits chunkfmt.Limits
		want   error
	}{
		{"another layer's index", func(f *imageindex.Found) {
			l := f.Artifact.Layers
			l[0].Index, l[1].Index = l[1].Index, l[0].Index
		}, chunkfmt.Limits{}, artifact.ErrMismatch},
		{"another diff ID", func(f *imageindex.Found) { f.Config.RootFS.DiffIDs[1] = f.Config.RootFS.DiffIDs[0] }, chunkfmt.Limits{}, artifact.ErrMismatch},
		{"other layers", func(f *imageindex.Found) { f.Subject.Layers = f.Subject.Layers[1:] }, chunkfmt.Limits{}, artifact.ErrMismatch},
		{"too many bytes", func(f *imageindex.Found) { f.Artifact.Layers[0].Index.Size = 1 << 30 }, chunkfmt.Limits{}, chunkfmt.ErrInvalid},
		{"more bytes than asked for", func(*imageindex.Found) {}, chunkfmt.Limits{Body: 100}, chunkfmt.ErrInvalid},
		{"more entries than asked for", func(*imageindex.Found) {}, chunkfmt.Limits{Entries: 1}, chunkfmt.ErrInvalid},
		{"another size", func(f *imageindex.Found) { f.Artifact.Layers[0].Index.Size++ }, chunkfmt.Limits{}, image.ErrCorrupt},
	} {
		src, f, err := find(t, ref, trusting(t, key))
		if err != nil {
			t.Fatal(err)
		}
		tt.change(f)
		before := s.Requests()
		if _, err := imageindex.Load(t.Context(), src, f, tt.limits); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if n := s.Requests() - before; n > 0 && strings.Contains(tt.name, "bytes") {
			t.Errorf("%s: found out after %d requests", tt.name, n)
		}
	}
}
