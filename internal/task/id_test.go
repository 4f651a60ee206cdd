package task_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/task"
)

const hex64 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func TestParseID(t *testing.T) {
	for _, tc := range []struct {
		in string
		ok bool
	}{
		{"sha256:" + hex64, true},
		{"url:" + hex64, true},
		{"", false},
		{hex64, false},
		{"sha512:" + hex64, false},
		{"sha256:" + hex64[1:], false},
		{"sha256:" + hex64 + "0", false},
		{"sha256:" + strings.ToUpper(hex64), false},
		{"sha256:../../../../etc/passwd", false},
		{"url:sha256:" + hex64, false},
		{strings.Repeat("x", 1<<16), false},
	} {
		id, err := task.ParseID(tc.in)
		if (err == nil) != tc.ok || (err == nil && string(id) != tc.in) {
			t.Errorf("ParseID(%.80q) = %q, %v; want ok %v", tc.in, id, err, tc.ok)
		}
		if err != nil && (!errors.Is(err, task.ErrInvalidID) || len(err.Error()) > 300) {
			t.Errorf("ParseID(%.80q): error of %d bytes: %.100v", tc.in, len(err.Error()), err)
		}
	}
}

func TestIDDigest(t *testing.T) {
	d, err := task.ParseDigest(hex64)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := task.BlobID(d).Digest(); !ok || got != d {
		t.Errorf("digest of a blob's id: %v, %v", got, ok)
	}
	if _, ok := task.URLID("http://a/b", "e", "m", 5).Digest(); ok {
		t.Error("a URL's id fixes a digest")
	}
	if got := task.BlobID(d).Short(); got != "sha256:001122334455" {
		t.Errorf("Short is %q", got)
	}
	if _, err := task.ParseDigest(hex64[2:]); err == nil {
		t.Error("a short digest was taken")
	}
}

func TestURLID(t *testing.T) {
	seen := map[task.ID]string{}
	for _, f := range []struct {
		url, etag, modified string
		length              int64
	}{
		{"http://a/b", "e", "m", 5},
		{"http://a/b", "e", "m", 6},
		{"http://a/b", "e", "", 5},
		{"http://a/b", "", "e", 5},
		{"http://a/be", "", "m", 5},
		{"http://a/b", "e:m", "", 5},
		{"http://a/b1", "e", "m", 5},
		{"http://a/b", "e", "m", -1},
	} {
		id := task.URLID(f.url, f.etag, f.modified, f.length)
		if _, err := task.ParseID(string(id)); err != nil {
			t.Error(err)
		}
		if other, dup := seen[id]; dup {
			t.Errorf("%+v and %s have one id", f, other)
		}
		seen[id] = f.url + " " + f.etag
	}
	const known = "url:9d46af91de71b49e09cda72e907fb3978a0187a10047cf3617d6321c6b87a8e7"
	if got := task.URLID("u", "e", "m", 1); got != known {
		t.Errorf("the id of known content is %s, want %s", got, known)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("sha256:" + hex64)
	f.Add("url:" + hex64)
	f.Add("sha256:" + strings.Repeat("/", 64))
	f.Fuzz(func(t *testing.T, s string) {
		id, err := task.ParseID(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(s, "/\\.\x00") || len(s) > 71 {
			t.Fatalf("%q is not fit for a file name", s)
		}
		if d, ok := id.Digest(); ok && task.BlobID(d) != id {
			t.Fatalf("%q has digest %v", s, d)
		}
		if !strings.HasPrefix(s, id.Short()) {
			t.Fatalf("Short of %q is %q", s, id.Short())
		}
	})
}
