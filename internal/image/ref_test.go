package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

const someDigest = digest.Digest("sha256:4278d1019ccab567f87edb9a158321f2ee885df824c8eb132cd309932c0751f7")

func TestParse(t *testing.T) {
	dir := t.TempDir()
	for in, want := range map[string]Ref{
		"ghcr.io/a/b":                            {Kind: KindRegistry, Registry: "ghcr.io", Repository: "a/b", Tag: "latest"},
		"127.0.0.1:5000/x:1.2":                   {Kind: KindRegistry, Registry: "127.0.0.1:5000", Repository: "x", Tag: "1.2"},
		"localhost/x:1":                          {Kind: KindRegistry, Registry: "localhost", Repository: "x", Tag: "1"},
		"localhost:5000/x":                       {Kind: KindRegistry, Registry: "localhost:5000", Repository: "x", Tag: "latest"},
		"[::1]:5000/x":                           {Kind: KindRegistry, Registry: "[::1]:5000", Repository: "x", Tag: "latest"},
		"debian:12":                              {Kind: KindRegistry, Registry: "index.docker.io", Repository: "library/debian", Tag: "12"},
		"ghcr.io/a/b@" + someDigest.String():     {Kind: KindRegistry, Registry: "ghcr.io", Repository: "a/b", Digest: someDigest},
		"ghcr.io/a/b:tag@" + someDigest.String(): {Kind: KindRegistry, Registry: "ghcr.io", Repository: "a/b", Digest: someDigest},
		"oci:some/dir":                           {Kind: KindLayout, Path: "some/dir"},
		"oci:/some/dir:v1":                       {Kind: KindLayout, Path: "/some/dir", Tag: "v1"},
		"oci:d:docker.io/a/b:v1":                 {Kind: KindLayout, Path: "d", Tag: "docker.io/a/b:v1"},
		"oci:d@" + someDigest.String():           {Kind: KindLayout, Path: "d", Digest: someDigest},
		"docker-archive:/x/y.tar":                {Kind: KindArchive, Path: "/x/y.tar"},
		"./root":                                 {Kind: KindDirectory, Path: "./root"},
		"../root":                                {Kind: KindDirectory, Path: "../root"},
		"/no/such":                               {Kind: KindDirectory, Path: "/no/such"},
		".":                                      {Kind: KindDirectory, Path: "."},
		dir:                                      {Kind: KindDirectory, Path: dir},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParseSuggests(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "image.tar"), "x")
	layout := filepath.Join(dir, "layout")
	write(t, filepath.Join(layout, "oci-layout"), "{}")
	write(t, filepath.Join(layout, "index.json"), "{}")
	for in, want := range map[string]string{
		"":                      "want HOST/REPO",
		"docker://ghcr.io/a/b":  "without docker://",
		"https://ghcr.io/a/b":   "without https://",
		"docker-daemon:x":       "docker save",
		"oci-archive:x.tar":     "docker-archive:",
		"dir:/x":                "directory's path",
		"ghcr.io/A/b":           "lower case",
		"ghcr.io/a/b:":          "want HOST/REPO",
		"ghcr.io/a//b":          "no name of a repository",
		"ghcr.io/a/b@sha256:12": "sha256",
		"ghcr.io/a/b@sha512:" + strings.Repeat("0", 128): "sha256",
		"oci:":                           "no directory",
		"oci::tag":                       "no directory",
		"oci:d:":                         "no name of an image",
		"oci:d:t@" + someDigest.String(): "leave the tag out",
		"oci:d@sha256:12":                "64 hex",
		"docker-archive:":                "no file",
		filepath.Join(dir, "image.tar"):  "docker-archive:" + dir,
		layout:                           "oci:" + layout,
		"docker-archive:" + filepath.Join(dir, "image.tar") + ":latest": "read whole",
	} {
		if got, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %+v, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestParseExistingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("rootfs", 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := Parse("rootfs"); err != nil || got != (Ref{Kind: KindDirectory, Path: "./rootfs"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"a", "ghcr.io/a/b:c", "oci:d:t", "oci:d@" + someDigest.String(), "docker-archive:f", "./d", "/d",
		"127.0.0.1:5/a@" + someDigest.String(), "oci:d:a/b:c", "docker://x", "@", ":", "oci:@sha256:", "a\x00", "[::1]:5/x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(ref.String())
		if err != nil || again != ref {
			t.Errorf("Parse(%q) = %+v; of its String %q: %+v, %v", s, ref, ref, again, err)
		}
	})
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "amd64": "linux/amd64", "x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64",
		"linux/arm/v7": "linux/arm/v7", "armhf": "linux/arm/v7", "Linux/AArch64": "linux/arm64", "windows/amd64": "windows/amd64",
	} {
		p, err := ParsePlatform(in)
		if got := FormatPlatform(p); err != nil || got != want {
			t.Errorf("ParsePlatform(%q) = %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "/", "linux/", "a/b/c/d", "linux/am d64"} {
		if p, err := ParsePlatform(in); err == nil {
			t.Errorf("ParsePlatform(%q) = %+v, want an error", in, p)
		}
	}
}
