package artifact_test

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
)

func TestTags(t *testing.T) {
	d := digest.FromString("subject")
	for got, want := range map[string]string{
		artifact.FallbackTag(d):                      "sha256-" + d.Encoded(),
		artifact.Tag(d):                              "damselfly-sha256-" + d.Encoded(),
		artifact.SignatureTag(d, "0123456789abcdef"): "damselfly-0123456789abcdef-sha256-" + d.Encoded(),
		artifact.FallbackTag(digest.Digest("sha+" + strings.Repeat("a", 40) + ":x=" + strings.Repeat("Y", 80))): "sha-" + strings.Repeat("a", 28) + "-x-" + strings.Repeat("Y", 62),
		artifact.FallbackTag("no digest"): "no-digest-",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	valid := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	for _, d := range []digest.Digest{"", ":", digest.FromString("x"), digest.Digest("sha512:" + strings.Repeat("0", 128)), digest.Digest(strings.Repeat("é", 99) + ":" + strings.Repeat("/", 99))} {
		for _, tag := range []string{artifact.Tag(d), artifact.SignatureTag(d, ""), artifact.SignatureTag(d, strings.Repeat("k/", 99))} {
			if !valid.MatchString(tag) {
				t.Errorf("%q is no tag", tag)
			}
		}
	}
}

func descriptor(name string) v1.Descriptor {
	return v1.Descriptor{
		MediaType: v1.MediaTypeImageManifest, ArtifactType: artifact.ArtifactType, Digest: digest.FromString(name), Size: 9,
		Annotations: map[string]string{"name": name},
	}
}

func add(t *testing.T, list []byte, d v1.Descriptor, wantChange bool) []byte {
	t.Helper()
	next, changed, err := artifact.AddReferrer(list, d)
	if err != nil || changed != wantChange {
		t.Fatalf("changed %v, error %v", changed, err)
	}
	return next
}

func TestAddReferrer(t *testing.T) {
	list := add(t, nil, descriptor("a"), true)
	list = add(t, list, descriptor("b"), true)
	if same := add(t, list, descriptor("a"), false); string(same) != string(list) {
		t.Errorf("changed to %s", same)
	}
	changed := descriptor("a")
	changed.Annotations["name"] = "new"
	list = add(t, list, changed, true)
	var ix v1.Index
	if err := json.Unmarshal(list, &ix); err != nil {
		t.Fatal(err)
	}
	if ix.SchemaVersion != 2 || ix.MediaType != v1.MediaTypeImageIndex || len(ix.Manifests) != 2 ||
		ix.Manifests[0].Annotations["name"] != "new" || ix.Manifests[1].Digest != descriptor("b").Digest {
		t.Errorf("%s", list)
	}
}

func TestAddReferrerKeepsOthers(t *testing.T) {
	const theirs = `{"theirs":{"x":1},"digest":"sha256:00"}`
	list := add(t, []byte(`{"schemaVersion":2,"later":true,"manifests":[`+theirs+`]}`), descriptor("a"), true)
	for _, want := range []string{theirs, `"later":true`, descriptor("a").Digest.String()} {
		if !strings.Contains(string(list), want) {
			t.Errorf("%s lacks %s", list, want)
		}
	}
}

func TestReferrersRefuses(t *testing.T) {
	for _, list := range []string{"", "[]", "null x", `{"mediaType":1}`, `{"mediaType":"x"}`, `{"manifests":{}}`, strings.Repeat(" ", artifact.MaxManifest) + "{}"} {
		if _, _, err := artifact.AddReferrer([]byte(list), descriptor("a")); !errors.Is(err, artifact.ErrInvalid) {
			t.Errorf("add to %.30q: %v", list, err)
		}
		if _, err := artifact.Referrers([]byte(list), "x"); !errors.Is(err, artifact.ErrInvalid) {
			t.Errorf("read %.30q: %v", list, err)
		}
	}
	full := []byte(`{"manifests":[],"x":"` + strings.Repeat("x", artifact.MaxManifest-100) + `"}`)
	if _, _, err := artifact.AddReferrer(full, descriptor("a")); !errors.Is(err, artifact.ErrInvalid) {
		t.Errorf("add to a full list: %v", err)
	}
}

func TestReferrers(t *testing.T) {
	other, large := descriptor("other"), descriptor("large")
	other.ArtifactType, large.Size = "x", artifact.MaxManifest+1
	var list []byte
	for _, d := range []v1.Descriptor{descriptor("a"), other, large, {MediaType: v1.MediaTypeImageManifest, ArtifactType: artifact.ArtifactType, Digest: "bad"}, descriptor("b")} {
		list = add(t, list, d, true)
	}
	list = []byte(strings.Replace(string(list), `"manifests":[`, `"manifests":[7,null,{},`, 1))
	found, err := artifact.Referrers(list, artifact.ArtifactType)
	if err != nil || len(found) != 2 || found[0].Digest != descriptor("a").Digest || found[1].Digest != descriptor("b").Digest {
		t.Errorf("%+v, %v", found, err)
	}
	if found, err := artifact.Referrers(nil, artifact.ArtifactType); err != nil || found != nil {
		t.Errorf("no list: %+v, %v", found, err)
	}
}

func FuzzAddReferrer(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:00"},null,1]}`))
	f.Add([]byte(`{"manifests":null}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, list []byte) {
		next, _, err := artifact.AddReferrer(list, descriptor("a"))
		if err != nil {
			return
		}
		if again, changed, err := artifact.AddReferrer(next, descriptor("a")); err != nil || changed || string(again) != string(next) {
			t.Fatalf("%q became %q, then %q (%v, %v)", list, next, again, changed, err)
		}
		if found, err := artifact.Referrers(next, artifact.ArtifactType); err != nil || len(found) == 0 {
			t.Fatalf("%q: %v, %v", next, found, err)
		}
	})
}
