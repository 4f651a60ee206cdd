package artifact

import (
	"strings"

	"github.com/opencontainers/go-digest"
)

// A tag has at most 128 characters; the parts of a digest are cut so that all
// tags below stay within, and as the distribution specification says.
const (
	maxAlgorithm = 32
	maxEncoded   = 64
	maxKey       = 16
)

// Tag returns the tag under which the artifact of an image is kept beside it.
// It has two uses: registries whose garbage collection deletes manifests
// without a tag keep the artifact, and readers find it with one request, also
// where there is no API for referrers. The latest artifact has the tag.
func Tag(subject digest.Digest) string { return "damselfly-" + FallbackTag(subject) }

// SignatureTag is what Tag is, for the signature that a key has made of an
// artifact's manifest. A reader asks for the tags of the keys that it trusts;
// others cannot crowd out what it looks for.
func SignatureTag(artifact digest.Digest, key string) string {
	return "damselfly-" + tagged(key, maxKey) + "-" + FallbackTag(artifact)
}

// FallbackTag returns the tag under which a registry without the API for
// referrers keeps the list of what refers to a manifest: the "referrers tag
// schema" of the distribution specification, such as sha256-<hex>.
func FallbackTag(subject digest.Digest) string {
	algorithm, encoded, _ := strings.Cut(string(subject), ":")
	return tagged(algorithm, maxAlgorithm) + "-" + tagged(encoded, maxEncoded)
}

// tagged cuts s and replaces what a tag cannot have.
func tagged(s string, most int) string {
	s = s[:min(len(s), most)]
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_':
			return r
		}
		return '-'
	}, s)
}
