package artifact_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
)

// Readers differ in what they make of such documents: encoding/json takes the
// last of two members, or mixes their content, and takes "Layers" for "layers".
func TestAmbiguousManifestsAreRefused(t *testing.T) {
	good := string(manifest(t, image(2, 1)))
	other := image(2, 1).Layers[1].Index.Digest.String()
	for _, tt := range []struct{ old, new, want string }{
		{`{"schemaVersion":2`, `{"schemaVersion":2,"schemaVersion":2`, `two members are named "schemaVersion"`},
		{`"layers":`, `"layers":[],"layers":`, `two members are named "layers"`},
		{`"layers":`, `"layers":[],"l\u0061yers":`, `two members are named "layers"`},
		{`"layers":`, `"Layers":[],"layers":`, `named "Layers", not "layers"`},
		{`"layers":`, `"layer\u017f":`, `not "layers"`},
		{`"subject":`, `"subject":{},"subject":`, `two members are named "subject"`},
		{`"subject":`, `"SUBJECT":`, `named "SUBJECT", not "subject"`},
		{`"size":777`, `"size":1,"size":777`, `two members are named "size"`},
		{`"size":1000`, `"Size":1,"size":1000`, `named "Size", not "size"`},
		{`"size":1001`, `"size":1001,"Digest":"` + other + `"`, `named "Digest", not "digest"`},
		{`"annotations":{"dev.damselfly.root"`, `"annotations":{"dev.damselfly.root":"","dev.damselfly.root"`, `two members are named "dev.damselfly.root"`},
		{`{"schemaVersion"`, `{"FSlayers":null,"schemaVersion"`, `named "FSlayers", not "fsLayers"`},
		{`{"schemaVersion"`, `{"later":[{"a":1,"a":1}],"schemaVersion"`, `two members are named "a"`},
		{`{"schemaVersion"`, "\ufeff" + `{"schemaVersion"`, "invalid character"},
	} {
		bad := strings.Replace(good, tt.old, tt.new, 1)
		if bad == good {
			t.Fatalf("%q is not in %s", tt.old, good)
		}
		for what, parse := range map[string]func([]byte) error{
			"artifact": func(p []byte) error { _, err := artifact.Parse(p); return err },
			"subject":  func(p []byte) error { _, err := artifact.ParseSubject(p); return err },
		} {
			if err := parse([]byte(bad)); !errors.Is(err, artifact.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %s instead of %s: got error %v, want %q", what, tt.new, tt.old, err, tt.want)
			}
		}
	}
	if _, err := artifact.Parse([]byte(good + "{}")); !errors.Is(err, artifact.ErrInvalid) {
		t.Errorf("something behind the manifest: %v", err)
	}
	// Names that only look alike to people, where anybody may add some.
	fine := strings.Replace(good, `"annotations":{`, `"x":{"Size":1,"size":2},"annotations":{"Size":"1","size":"2",`, 1)
	if _, err := artifact.Parse([]byte(fine)); err != nil {
		t.Errorf("annotations in other letters: %v", err)
	}
}
