package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// Kind is where a reference points to.
type Kind int

// The kinds of references.
const (
	KindRegistry  Kind = iota // a repository of a registry
	KindLayout                // an OCI layout directory
	KindArchive               // a file written by docker save or skopeo
	KindDirectory             // a root file system, taken as one layer
)

// String names the kind for people.
func (k Kind) String() string {
	switch k {
	case KindRegistry:
		return "registry"
	case KindLayout:
		return "OCI layout"
	case KindArchive:
		return "docker archive"
	case KindDirectory:
		return "directory"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Ref names an image, or where one goes.
type Ref struct {
	Kind Kind
	// Registry is the host and port ("ghcr.io", "127.0.0.1:5000"; Docker Hub is
	// "index.docker.io") and Repository the name in it, both of KindRegistry.
	Registry, Repository string
	// Path is the directory or file of the other kinds.
	Path string
	// Tag of a registry (default "latest") or name of an entry in an OCI layout
	// (default none: its only image). Empty if Digest is set.
	Tag string
	// Digest of the manifest, or "". Of KindRegistry and KindLayout.
	Digest digest.Digest
}

const (
	prefixLayout  = "oci:"
	prefixArchive = "docker-archive:"
	usage         = "want HOST/REPO[:TAG|@DIGEST], oci:DIR[:TAG|@DIGEST], docker-archive:FILE or a directory"
	maxRef        = 4096
	maxRepo       = 255
	defaultTag    = "latest"
)

// The grammar of the OCI distribution specification, and the one of names in an
// OCI layout.
var (
	repoPattern   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	layoutPattern = regexp.MustCompile(`^[a-zA-Z0-9]+([-._:@+/]*[a-zA-Z0-9_]+)*$`)
)

// elsewhere are prefixes of other tools, and what to write instead.
var elsewhere = map[string]string{
	"docker://":           "write HOST/REPO[:TAG] without docker://",
	"http://":             "write HOST/REPO[:TAG] without http://",
	"https://":            "write HOST/REPO[:TAG] without https://",
	"docker-daemon:":      "save the image with docker save -o FILE, and write docker-archive:FILE",
	"containers-storage:": "copy the image with skopeo copy … oci:DIR:TAG, and write oci:DIR:TAG",
	"oci-archive:":        "write docker-archive:FILE, which reads OCI archives too",
	"dir:":                "write the directory's path, or copy the image with skopeo copy … oci:DIR:TAG",
	"file:":               "write the path alone",
}

// Parse reads a reference:
//
//	HOST/REPO[:TAG|@DIGEST]   a registry; without a host Docker Hub
//	oci:DIR[:TAG|@DIGEST]     an OCI layout; DIR ends at the first colon
//	docker-archive:FILE       what docker save writes
//	DIR                       begins with /, ./ or ../, or is there: a directory
//
// It looks at the file system to tell directories from names, and to say what
// was probably meant. That the thing exists is found out by Open.
func Parse(s string) (Ref, error) {
	if s == "" || len(s) > maxRef || strings.ContainsRune(s, 0) {
		return Ref{}, fmt.Errorf("reference of %d bytes: %s", len(s), usage)
	}
	for prefix, advice := range elsewhere {
		if strings.HasPrefix(s, prefix) {
			return Ref{}, fmt.Errorf("reference %.200q: %s", s, advice)
		}
	}
	if rest, ok := strings.CutPrefix(s, prefixLayout); ok {
		return parseLayout(s, rest)
	}
	if rest, ok := strings.CutPrefix(s, prefixArchive); ok {
		return parseArchive(s, rest)
	}
	if ref, ok, err := parsePath(s); ok || err != nil {
		return ref, err
	}
	return parseRegistry(s)
}

func parseLayout(s, rest string) (Ref, error) {
	dir, d, hasDigest, err := cutDigest(rest)
	if err != nil {
		return Ref{}, fmt.Errorf("reference %.200q: %w", s, err)
	}
	dir, tag, hasTag := strings.Cut(dir, ":")
	switch {
	case dir == "":
		return Ref{}, fmt.Errorf("reference %.200q names no directory: want oci:DIR[:TAG|@DIGEST]", s)
	case hasTag && hasDigest:
		return Ref{}, fmt.Errorf("reference %.200q has both a tag and a digest: leave the tag out", s)
	case hasTag && !layoutPattern.MatchString(tag):
		return Ref{}, fmt.Errorf("reference %.200q: %.100q is no name of an image in an OCI layout: want oci:DIR[:TAG|@DIGEST], with no colon in DIR", s, tag)
	}
	return Ref{Kind: KindLayout, Path: dir, Tag: tag, Digest: d}, nil
}

// cutDigest splits the digest from the end of a reference.
func cutDigest(s string) (rest string, d digest.Digest, ok bool, err error) {
	i := strings.LastIndex(s, "@")
	if i < 0 || !strings.HasPrefix(s[i+1:], "sha") || !strings.Contains(s[i+1:], ":") {
		return s, "", false, nil
	}
	d = digest.Digest(s[i+1:])
	if err := checkDigest(d); err != nil {
		return "", "", false, err
	}
	return s[:i], d, true, nil
}

// checkDigest accepts the one algorithm that registries use. It also makes a
// digest safe to put into a path.
func checkDigest(d digest.Digest) error {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.100q: want sha256:<64 hex digits>", string(d))
	}
	return nil
}

func parseArchive(s, path string) (Ref, error) {
	if path == "" {
		return Ref{}, fmt.Errorf("reference %.200q names no file: want docker-archive:FILE", s)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if file, _, ok := strings.Cut(path, ":"); ok && isFile(file) {
			return Ref{}, fmt.Errorf("reference %.200q: an archive is read whole: write docker-archive:%s", s, file)
		}
	}
	return Ref{Kind: KindArchive, Path: path}, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// parsePath recognises directories.
func parsePath(s string) (Ref, bool, error) {
	explicit := s == "." || s == ".." || strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")
	switch {
	case isDir(s):
		if isFile(filepath.Join(s, "oci-layout")) && isFile(filepath.Join(s, "index.json")) {
			return Ref{}, false, fmt.Errorf("reference %.200q is an OCI layout: write oci:%.200s", s, s)
		}
		if !explicit {
			s = "./" + s
		}
		return Ref{Kind: KindDirectory, Path: s}, true, nil
	case isFile(s):
		return Ref{}, false, fmt.Errorf("reference %.200q is a file: write docker-archive:%.200s if docker save made it", s, s)
	}
	return Ref{Kind: KindDirectory, Path: s}, explicit, nil
}

func parseRegistry(s string) (Ref, error) {
	parsed, err := name.ParseReference(s)
	if err != nil {
		if lower := strings.ToLower(s); lower != s && !strings.Contains(s, "@") {
			if _, lerr := name.ParseReference(lower); lerr == nil {
				return Ref{}, fmt.Errorf("reference %.200q: names of repositories are in lower case: %s", s, usage)
			}
		}
		return Ref{}, fmt.Errorf("reference %.200q: %w: %s", s, err, usage)
	}
	ref := Ref{Kind: KindRegistry, Registry: parsed.Context().RegistryStr(), Repository: parsed.Context().RepositoryStr()}
	if len(ref.Repository) > maxRepo || !repoPattern.MatchString(ref.Repository) {
		return Ref{}, fmt.Errorf("reference %.200q: %.100q is no name of a repository: %s", s, ref.Repository, usage)
	}
	id := parsed.Identifier()
	if strings.Contains(id, ":") {
		ref.Digest = digest.Digest(id)
		if err := checkDigest(ref.Digest); err != nil {
			return Ref{}, fmt.Errorf("reference %.200q: %w", s, err)
		}
		return ref, nil
	}
	if !tagPattern.MatchString(id) {
		return Ref{}, fmt.Errorf("reference %.200q: %.100q is no tag: %s", s, id, usage)
	}
	ref.Tag = id
	return ref, nil
}

// String returns the reference in the form that Parse reads.
func (r Ref) String() string {
	switch r.Kind {
	case KindLayout:
		return prefixLayout + r.Path + r.suffix()
	case KindArchive:
		return prefixArchive + r.Path
	case KindDirectory:
		return r.Path
	}
	return r.Registry + "/" + r.Repository + r.suffix()
}

func (r Ref) suffix() string {
	switch {
	case r.Digest != "":
		return "@" + r.Digest.String()
	case r.Tag != "":
		return ":" + r.Tag
	}
	return ""
}

// WithDigest returns a reference to the manifest with a digest at the same
// place.
func (r Ref) WithDigest(d digest.Digest) Ref {
	r.Tag, r.Digest = "", d
	return r
}

// WithTag returns a reference to a tag at the same place.
func (r Ref) WithTag(tag string) Ref {
	r.Tag, r.Digest = tag, ""
	return r
}

// identifier is what a registry or layout is asked for.
func (r Ref) identifier() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
