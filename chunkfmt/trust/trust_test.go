package trust_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
)

var update = flag.Bool("update", false, "write the golden files")

const repo = "registry.local:5000/dev/app"

func newKey(t testing.TB) *trust.PrivateKey {
	t.Helper()
	k, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// pemOf returns the public key.
func pemOf(t testing.TB, k *trust.PrivateKey) string {
	t.Helper()
	data, err := k.Public().MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func policy(t testing.TB, unsigned []string, keys ...*trust.PrivateKey) *trust.Policy {
	t.Helper()
	s := trust.Settings{Unsigned: unsigned}
	for _, k := range keys {
		s.Keys = append(s.Keys, pemOf(t, k))
	}
	p, err := s.Policy(nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pair is an image and its artifact.
type pair struct {
	subject, artifact []byte
	descriptor        v1.Descriptor // of artifact
}

// newPair makes an image of two layers that differ by name, bound or not.
// Change alters the artifact.
func newPair(t testing.TB, name string, bind bool, change func(*artifact.Image)) pair {
	t.Helper()
	sum := func(format string, i int) chunkfmt.Digest { return chunkfmt.Sum(fmt.Appendf(nil, name+format, i)) }
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: artifact.Empty()}
	a := &artifact.Image{Root: sum("root", 0)}
	for i := range 2 {
		l := artifact.Layer{Index: artifact.Object{Digest: sum("index", i), Size: 9}, Digest: sum("layer", i), DiffID: sum("diff", i), Root: sum("root", i)}
		a.Layers = append(a.Layers, l)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.Digest(l.Digest.String()), Size: 5})
	}
	if bind {
		if err := a.Bind(&m); err != nil {
			t.Fatal(err)
		}
	}
	var p pair
	var err error
	if p.subject, a.Subject, err = artifact.Encode(m); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(a)
	}
	if p.artifact, p.descriptor, err = a.Manifest(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p pair) candidate(signatures ...[]byte) trust.Candidate {
	return trust.Candidate{
		Repository: repo, SubjectDigest: digest.FromBytes(p.subject), Subject: p.subject,
		Artifact: p.artifact, Signatures: signatures,
	}
}

func sign(t testing.TB, k *trust.PrivateKey, p pair) []byte {
	t.Helper()
	data, _, err := k.Sign(p.descriptor)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// edited returns a signature manifest with another signature.
func edited(t *testing.T, manifest []byte, change func(sig []byte)) []byte {
	t.Helper()
	_, rest, _ := strings.Cut(string(manifest), artifact.AnnotationSignature+`":"`)
	old, _, _ := strings.Cut(rest, `"`)
	sig, err := base64.StdEncoding.DecodeString(old)
	if err != nil {
		t.Fatal(err)
	}
	change(sig)
	return []byte(strings.Replace(string(manifest), old, base64.StdEncoding.EncodeToString(sig), 1))
}

func TestVerifyTrusts(t *testing.T) {
	old, current, foreign := newKey(t), newKey(t), newKey(t)
	plain, bound := newPair(t, "a", false, nil), newPair(t, "a", true, nil)
	both := policy(t, nil, old, current)
	joined, err := (*trust.Policy)(nil).With(current.Public())
	if err != nil {
		t.Fatal(err)
	}
	junk := [][]byte{nil, []byte("{}"), sign(t, foreign, plain), edited(t, sign(t, old, plain), func(s []byte) { s[0] ^= 1 })}
	for name, tt := range map[string]struct {
		policy *trust.Policy
		c      trust.Candidate
		want   trust.Reason
		key    string
	}{
		"bound, no policy":              {nil, bound.candidate(), trust.Bound, ""},
		"bound and signed":              {both, bound.candidate(sign(t, old, bound)), trust.Bound, ""},
		"the old key":                   {both, plain.candidate(sign(t, old, plain)), trust.Signed, old.ID()},
		"the current key":               {both, plain.candidate(sign(t, current, plain)), trust.Signed, current.ID()},
		"a key learnt later":            {joined, plain.candidate(sign(t, current, plain)), trust.Signed, current.ID()},
		"one good signature among many": {both, plain.candidate(append(junk, sign(t, current, plain))...), trust.Signed, current.ID()},
		"unsigned repository":           {policy(t, []string{"registry.local:5000/dev/*"}), plain.candidate(junk...), trust.Unsigned, ""},
		"signed in unsigned repository": {policy(t, []string{repo}, old), plain.candidate(sign(t, old, plain)), trust.Signed, old.ID()},
	} {
		v, err := tt.policy.Verify(tt.c)
		if err != nil || v.Reason != tt.want || v.Key != tt.key {
			t.Errorf("%s: %+v, %v", name, v, err)
			continue
		}
		if v.Digest != digest.FromBytes(tt.c.Artifact) || len(v.Image.Layers) != 2 || len(v.Subject.Layers) != 2 || !strings.Contains(v.String(), v.Key) {
			t.Errorf("%s: verdict %s %+v", name, v, v)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	trusted, foreign := newKey(t), newKey(t)
	plain, other := newPair(t, "a", false, nil), newPair(t, "b", false, nil)
	again := newPair(t, "a", false, func(a *artifact.Image) { a.Layers[0].Index.Digest = chunkfmt.Sum([]byte("forged")) })
	forged := newPair(t, "a", true, func(a *artifact.Image) { a.Layers[1].Index.Digest = chunkfmt.Sum([]byte("forged")) })
	forgedRoot := newPair(t, "a", true, func(a *artifact.Image) { a.Root = chunkfmt.Sum([]byte("forged")) })
	good := sign(t, trusted, plain)
	many := make([][]byte, trust.MaxSignatures)
	for i := range many {
		many[i] = sign(t, foreign, plain)
	}
	renamed := []byte(strings.Replace(string(sign(t, foreign, plain)), foreign.ID(), trusted.ID(), 1))
	p := policy(t, []string{"registry.local:5000/developer/*"}, trusted)
	for name, tt := range map[string]struct {
		c    trust.Candidate
		want []string
	}{
		"not signed":           {plain.candidate(), []string{"not signed", "dfctl image convert", `or list "` + repo + `" in trust.unsigned`, repo + "@sha256:"}},
		"foreign key":          {plain.candidate(sign(t, foreign, plain)), []string{"signed by key " + foreign.ID() + ", which this node does not trust", "trust.keys"}},
		"foreign key, renamed": {plain.candidate(renamed), []string{"the signature by key " + trusted.ID() + " is wrong"}},
		"flipped first bit":    {plain.candidate(edited(t, good, func(s []byte) { s[0] ^= 1 })), []string{"is wrong"}},
		"flipped last bit":     {plain.candidate(edited(t, good, func(s []byte) { s[63] ^= 0x80 })), []string{"is wrong"}},
		"short signature":      {plain.candidate([]byte(strings.Replace(string(good), `=="`, `"`, 1))), []string{"not 64 bytes in base64"}},
		"of another artifact":  {plain.candidate(sign(t, trusted, again)), []string{"is of another artifact, " + string(again.descriptor.Digest)}},
		"moved to this artifact": {plain.candidate([]byte(strings.Replace(string(sign(t, trusted, again)), string(again.descriptor.Digest), string(plain.descriptor.Digest), 1))),
			[]string{"is wrong"}},
		"too many":            {plain.candidate(append(many, good)...), []string{"only 64 of 65 signatures"}},
		"oversized signature": {plain.candidate(append(make([]byte, artifact.MaxManifest), good...)), []string{"at most 4194304"}},
		"binds another index": {forged.candidate(), []string{"not signed"}},
		"binds another root":  {forgedRoot.candidate(), []string{"not signed"}},
		"no repository":       {trust.Candidate{SubjectDigest: digest.FromBytes(plain.subject), Subject: plain.subject, Artifact: plain.artifact}, []string{"not signed"}},
		"both":                {other.candidate(sign(t, foreign, other), []byte("x")), []string{foreign.ID(), "invalid character"}},
	} {
		v, err := p.Verify(tt.c)
		if !errors.Is(err, trust.ErrUntrusted) || v.Reason != "" || v.Image != nil {
			t.Errorf("%s: %v, %v", name, v, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q lacks %q", name, err, want)
			}
		}
		if strings.Contains(err.Error(), "trust.unsigned") != (tt.c.Repository != "") {
			t.Errorf("%s: error %q", name, err)
		}
	}
}

// What does not belong together is refused whoever vouches for it.
func TestVerifyMismatch(t *testing.T) {
	k := newKey(t)
	p := policy(t, []string{"registry.local:5000/*"}, k)
	a, b := newPair(t, "a", false, nil), newPair(t, "b", false, nil)
	swapped := pair{subject: b.subject, artifact: a.artifact, descriptor: a.descriptor}
	layers := newPair(t, "a", false, func(i *artifact.Image) { i.Layers[0], i.Layers[1] = i.Layers[1], i.Layers[0] })
	boundLayers := newPair(t, "a", true, func(i *artifact.Image) { i.Layers[0].Digest = i.Layers[1].Digest })
	size := newPair(t, "a", false, func(i *artifact.Image) { i.Subject.Size++ })
	docker := newPair(t, "a", false, func(i *artifact.Image) {
		i.Subject.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
	})
	for name, tt := range map[string]struct {
		c      trust.Candidate
		is     error
		change func(*trust.Candidate)
		want   string
	}{
		"swapped subject":       {c: swapped.candidate(sign(t, k, a)), is: artifact.ErrMismatch, want: "it is that of sha256:"},
		"swapped layers":        {c: layers.candidate(sign(t, k, layers)), is: artifact.ErrMismatch, want: "layer 0: it is of"},
		"bound, layers renamed": {c: boundLayers.candidate(), is: artifact.ErrMismatch, want: "layer 0: it is of"},
		"size of the subject":   {c: size.candidate(), is: artifact.ErrMismatch, want: "manifest of"},
		"type of the subject":   {c: docker.candidate(), is: artifact.ErrMismatch, want: "docker"},
		"wrong subject bytes":   {c: a.candidate(), change: func(c *trust.Candidate) { c.Subject = append(c.Subject, ' ') }, is: artifact.ErrInvalid, want: "its digest is"},
		"no subject digest":     {c: a.candidate(), change: func(c *trust.Candidate) { c.SubjectDigest = "" }, is: artifact.ErrInvalid, want: "invalid digest"},
		"subject is no manifest": {c: a.candidate(), change: func(c *trust.Candidate) {
			c.Subject, c.SubjectDigest = []byte("[]"), digest.FromString("[]")
		}, is: artifact.ErrInvalid, want: "image's manifest: invalid manifest"},
		"no artifact": {c: a.candidate(), change: func(c *trust.Candidate) { c.Artifact = nil }, is: artifact.ErrInvalid, want: "artifact sha256:"},
		"oversized artifact": {c: a.candidate(), change: func(c *trust.Candidate) {
			c.Artifact = append(c.Artifact, make([]byte, artifact.MaxManifest)...)
		}, is: artifact.ErrInvalid, want: "at most 4194304"},
	} {
		if tt.change != nil {
			tt.change(&tt.c)
		}
		v, err := p.Verify(tt.c)
		if !errors.Is(err, tt.is) || errors.Is(err, trust.ErrUntrusted) || !strings.Contains(err.Error(), tt.want) || v.Image != nil {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}

func TestBoundTOC(t *testing.T) {
	plain, stored := []byte("plain"), []byte("stored")
	j, s := chunkfmt.Sum(plain).String(), chunkfmt.Sum(stored).String()
	const stargz, podman, chunked = "containerd.io/snapshot/stargz/toc.digest", "io.github.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-checksum"
	for _, tt := range []struct {
		annotations map[string]string
		ok          bool
		bad         string // what must not verify: plain, stored
	}{
		{nil, false, ""},
		{map[string]string{"other": j}, false, ""},
		{map[string]string{stargz: j}, true, "plain"},
		{map[string]string{podman: s}, true, "stored"},
		{map[string]string{chunked: s}, true, "stored"},
		{map[string]string{chunked: s, podman: s, stargz: j}, true, "plain stored"},
		{map[string]string{chunked: s, podman: j}, false, ""},
		{map[string]string{stargz: "sha512:00"}, false, ""},
		{map[string]string{stargz: chunkfmt.Digest{}.String()}, false, ""},
		{map[string]string{stargz: ""}, false, ""},
	} {
		toc, ok := trust.BoundTOC(v1.Descriptor{Annotations: tt.annotations})
		if ok != tt.ok || toc.Verify(stored, plain) != ok {
			t.Errorf("%v: %v, %v, verifies %v", tt.annotations, toc, ok, toc.Verify(stored, plain))
		}
		if got := toc.Verify(stored, nil); got != (ok && !strings.Contains(tt.bad, "plain")) {
			t.Errorf("%v: wrong plain table: %v", tt.annotations, got)
		}
		if got := toc.Verify(nil, plain); got != (ok && !strings.Contains(tt.bad, "stored")) {
			t.Errorf("%v: wrong stored table: %v", tt.annotations, got)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	k := newKey(t)
	for _, d := range []v1.Descriptor{{}, {MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("x")}, {MediaType: v1.MediaTypeImageManifest, Digest: "sha256:x"}} {
		if _, _, err := k.Sign(d); !errors.Is(err, artifact.ErrInvalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

func TestParseSignature(t *testing.T) {
	k, p := newKey(t), newPair(t, "a", false, nil)
	good, d, err := k.Sign(p.descriptor)
	if err != nil {
		t.Fatal(err)
	}
	s, err := trust.ParseSignature(good)
	if err != nil || s.Key != k.ID() || s.Artifact.Digest != p.descriptor.Digest || d.ArtifactType != artifact.SignatureType || d.Annotations[artifact.AnnotationKey] != k.ID() {
		t.Fatalf("%+v, %+v, %v", s, d, err)
	}
	if again, _, _ := k.Sign(p.descriptor); string(again) != string(good) {
		t.Error("two signatures of the same differ")
	}
	for _, tt := range []struct{ old, new, want string }{
		{artifact.SignatureType, artifact.ArtifactType, "artifactType"},
		{`"layers":[`, `"layers":[{"mediaType":"x","digest":"` + string(p.descriptor.Digest) + `","size":2},`, "layer is not the empty one"},
		{`"dev.damselfly.key":"`, `"dev.damselfly.key":"0`, "not the ID of a key"},
		{k.ID(), strings.Repeat("F", 16), "not the ID of a key"},
		{`"dev.damselfly.signature":"`, `"dev.damselfly.signature":"AAAA`, "not 64 bytes"},
		{`"dev.damselfly.signature":"`, `"dev.damselfly.signature":"\n`, "not 64 bytes"},
		{`"dev.damselfly.signature":`, `"x":`, "not 64 bytes"},
		{`"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json"`, `"subject":{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"`, "subject is a"},
	} {
		bad := strings.Replace(string(good), tt.old, tt.new, 1)
		if bad == string(good) {
			t.Fatalf("%s is not in %s", tt.old, good)
		}
		if _, err := trust.ParseSignature([]byte(bad)); !errors.Is(err, artifact.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s instead of %s: %v", tt.new, tt.old, err)
		}
	}
}

// The key and the artifact are known, so that others can check their verifiers.
func TestGoldenSignature(t *testing.T) {
	const file = "testdata/signature.json"
	k, err := trust.ParsePrivateKey([]byte(vectorPrivate))
	if err != nil {
		t.Fatal(err)
	}
	of, err := os.ReadFile("../artifact/testdata/manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	of = bytes.TrimSuffix(of, []byte("\n"))
	got, _, err := k.Sign(v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(of), Size: int64(len(of))})
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzParseSignature(f *testing.F) {
	k, err := trust.ParsePrivateKey([]byte(vectorPrivate)) // the same in all processes
	if err != nil {
		f.Fatal(err)
	}
	p := newPair(f, "a", false, nil)
	f.Add(sign(f, k, p))
	f.Add(p.artifact)
	pol := policy(f, nil, k)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := trust.ParseSignature(data)
		if err != nil && !errors.Is(err, artifact.ErrInvalid) {
			t.Fatalf("error %v does not wrap ErrInvalid", err)
		}
		if err == nil && s.Artifact.Digest == "" {
			t.Fatal("a signature of nothing")
		}
		if v, err := pol.Verify(p.candidate(data)); err == nil && v.Reason != trust.Signed {
			t.Fatalf("%v", v)
		}
	})
}
