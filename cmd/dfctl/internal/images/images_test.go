package images_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/images"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

func TestConvert(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	out := u.ok("convert", ref)
	key, err := trust.Load(filepath.Join(u.home, ".config/damselfly/key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	contains(t, out, "image:      "+ref+" (linux/amd64)\n", "signed by:  "+key.ID()+"\n", "in 2 layers\n", "; 0 B was there\n")
	contains(t, u.con.Stderr.String(), "made the signing key "+u.home, key.ID())
	c := decode[images.Conversion](u, 0, "convert", ref, "--tag", "idx")
	if len(c.Images) != 1 || c.Images[0].SentBytes != 0 || c.Images[0].Tag != "idx" || c.Images[0].SignedBy != key.ID() {
		t.Errorf("the second time: %+v", c.Images[0])
	}
	for _, name := range []string{ref, s.Host + "/app:idx", s.Host + "/app@" + c.Images[0].Artifact} {
		contains(t, u.ok("inspect", name), c.Images[0].Artifact, "yes, signed by key "+key.ID())
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, false)
	ref := s.Put("app:v1", app(t, nil))
	u.ok("convert", ref, "--chunk-size", "64KiB", "--group-size", "64KiB")
	i := decode[images.Inspection](u, 0, "inspect", ref)
	plain := int64(2*len(big)+len(other)) + 5 + 2*5000 + 220
	if i.Files != 7 || i.PlainBytes != plain || i.InlineBytes != 5 {
		t.Errorf("%d files, %d bytes, %d inline; want 7, %d, 5", i.Files, i.PlainBytes, i.InlineBytes, plain)
	}
	if unique := plain - int64(len(big)) - 5; i.UniqueBytes != unique {
		t.Errorf("%d unique bytes, want %d", i.UniqueBytes, unique)
	}
	if lower, upper := i.Layers[0], i.Layers[1]; lower.SharedBytes != 0 || upper.SharedBytes < int64(len(big)) || upper.SharedBytes > lower.StoredBytes ||
		upper.StoredBytes < upper.SharedBytes+int64(len(other)) {
		t.Errorf("layers %+v", i.Layers)
	}
	if i.Layers[0].StoredBytes+i.Layers[1].StoredBytes-i.Layers[1].SharedBytes != i.BlobBytes {
		t.Errorf("layers store %+v, the blobs have %d", i.Layers, i.BlobBytes)
	}
	c := i.ColdStart
	if c.Basis != "command" || c.Files != 3 || c.GroupBytes <= 10_000 || c.GroupBytes > 200_000 || len(c.Missing) != 0 {
		t.Errorf("cold start %+v", c)
	}
	trace := write(t, filepath.Join(t.TempDir(), "trace"), "/lib/other\n{\"path\":\"/lib/big\",\"offset\":0,\"length\":10}\n/gone\n")
	if c := decode[images.Inspection](u, 0, "inspect", ref, "--trace", trace, "--largest", "1").ColdStart; c.Basis != "trace" || c.Files != 2 || c.GroupBytes < 300_000 || c.GroupBytes > 500_000 || len(c.Missing) != 1 {
		t.Errorf("cold start by trace %+v", c)
	}
	out := u.ok("inspect", ref, "--trace", trace, "--largest", "2")
	contains(t, out, "not in the image: /gone", "/lib/again     683.6 KiB\n/lib/big       683.6 KiB\n", "SHARED", "trusted:       yes, signed")
	u.fails(1, "open /nope: no such file", "inspect", ref, "--trace", "/nope")
	u.fails(1, "invalid trace", "inspect", ref, "--trace", write(t, trace, "{\"path\":1}\n"))
}

func TestVerify(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	u.ok("convert", ref)
	out := u.ok("verify", ref)
	contains(t, out, "trust         ok", "merkle roots  ok       2 layers", "content       ok       ")
	if v := decode[images.Verification](u, 0, "verify", "--metadata-only", ref); !v.OK || len(v.Checks) != 2 || v.Problems == nil {
		t.Errorf("%+v", v)
	}
	single := decode[images.Verification](u, 0, "verify", "--file", "/lib/big", "--file", "etc/motd", ref)
	if !single.OK || len(single.Checks) != 4 {
		t.Fatalf("%+v", single)
	}
	var proof merkle.Proof
	root, err := chunkfmt.ParseDigest(single.Root)
	if err := errors.Join(err, proof.UnmarshalBinary(single.Checks[2].Proof), proof.Verify(root)); err != nil || proof.Path != "lib/big" {
		t.Errorf("proof of %q: %v", proof.Path, err)
	}
	u.fails(exit.NotFound, "/nope", "verify", "--file", "/nope", ref)
	u.fails(1, "no regular file", "verify", "--file", "/lib", ref)
	blob := aBlob(u, s, ref)
	s.Damage(blob)
	u.fails(exit.Mismatch, "did not pass", "verify", "--file", "/lib/big", "--file", "/lib/other", ref)
	v := decode[images.Verification](u, exit.Mismatch, "verify", ref)
	if v.OK || len(v.Problems) != 1 || v.Checks[2].OK {
		t.Fatalf("%+v", v)
	}
	contains(t, v.Problems[0], "lib/", blob, "group ")
	contains(t, u.con.Stderr.String(), ref+" did not pass")
	u.fails(exit.Mismatch, "lib/", "export", ref, "--out", filepath.Join(t.TempDir(), "x"))
	s.Intercept(nil)
	u.fails(cli.ExitUsage, "exclude each other", "verify", ref, "--dir", "/", "--metadata-only")
}

// aBlob returns the digest of a blob that verify reads.
func aBlob(u *user, s *indextest.Registry, ref string) string {
	u.t.Helper()
	var found atomic.Pointer[string]
	s.Intercept(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Range") != "" {
			blob := path.Base(r.URL.Path)
			found.Store(&blob)
		}
		return false
	})
	u.ok("verify", ref)
	return *found.Load()
}

func TestVerifyDir(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	tree, layout := t.TempDir(), "oci:"+filepath.Join(t.TempDir(), "new", "layout")+":app"
	write(t, filepath.Join(tree, "etc/motd"), "hello")
	write(t, filepath.Join(tree, "lib/big"), big)
	u.ok("convert", tree, "--to", layout)
	contains(t, u.ok("verify", "--dir", tree, layout), "directory     ok       "+tree)
	write(t, filepath.Join(tree, "etc/motd"), "Hello")
	v := decode[images.Verification](u, exit.Mismatch, "verify", "--dir", tree, layout)
	if len(v.Problems) == 0 || !strings.Contains(v.Problems[0], "etc/motd") {
		t.Errorf("problems %q", v.Problems)
	}
	u.fails(1, "no such file", "verify", "--dir", filepath.Join(tree, "gone"), layout)
}

func TestTrust(t *testing.T) {
	t.Parallel()
	maker, u, s := newUser(t), newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	maker.ok("convert", ref)
	contains(t, u.ok("inspect", ref), "trusted:       no: ", "this node does not trust")
	contains(t, u.ok("diff", ref, ref), "warning: the index of "+ref+" is not trusted")
	u.fails(exit.Refused, "not trusted", "export", ref, "--out", filepath.Join(t.TempDir(), "x"))
	u.fails(exit.Refused, "did not pass", "verify", "--metadata-only", ref)
	u.fails(exit.Refused, "dictionary: ", "convert", ref, "--dictionary", ref)
	policy := write(t, filepath.Join(t.TempDir(), "trust.yaml"), "unsigned: ["+s.Host+"/app]\n")
	contains(t, u.ok("inspect", ref, "--trust", policy), "trusted:       yes, unsigned")
	u.ok("convert", ref, "--dictionary", ref, "--trust", policy)
	u.fails(1, "nope.yaml", "inspect", ref, "--trust", "nope.yaml")
	u.fails(1, "bad.yaml", "inspect", ref, "--trust", write(t, filepath.Join(t.TempDir(), "bad.yaml"), "frob: 1\n"))
}

func TestDiff(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	v1, v2 := s.Put("app:v1", app(t, nil)), s.Put("app:v2", app(t, files{"lib/new": indextest.Noise(9, 100_000), "lib/other": "less"}))
	u.ok("convert", v1)
	u.ok("convert", v2, "--dictionary", v1)
	d := decode[images.Difference](u, 0, "diff", v1, v2)
	if d.Added != 1 || d.Removed != 0 || d.Modified < 1 || d.FetchBytes < 100_000 || d.FetchBytes > 110_000 || d.SharedBytes < 700_000 {
		t.Errorf("%+v", d)
	}
	contains(t, u.ok("diff", v1, v2), "added     /lib/new\n", "modified  /lib/other", "1 added, 0 removed")
	if d := decode[images.Difference](u, 0, "diff", v1, v1); d.FetchBytes != 0 || len(d.Changes) != 0 || d.Changes == nil {
		t.Errorf("with itself: %+v", d)
	}
	more := files{}
	for i := range 30 {
		more["many/"+strings.Repeat("x", i+1)] = "x"
	}
	v3 := s.Put("app:v3", app(t, more))
	u.ok("convert", v3)
	contains(t, u.ok("diff", v1, v3), "more: --all lists them\n")
	if out := u.ok("diff", "--all", v1, v3); strings.Contains(out, "--all") || strings.Count(out, "added     ") != 31 {
		t.Errorf("with --all:\n%s", out)
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	u.ok("convert", ref)
	dir := t.TempDir()
	one, two, base := filepath.Join(dir, "one"), filepath.Join(dir, "two"), filepath.Join(dir, "base")
	contains(t, u.ok("export", ref, "--out", one), one+": ", "2 layers of "+ref)
	all := decode[images.Exported](u, 0, "export", ref, "-O", two)
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(two); err != nil || !bytes.Equal(a, b) || int64(len(b)) != all.Bytes {
		t.Errorf("two exports differ, %v", err)
	}
	if e := decode[images.Exported](u, 0, "export", ref, "--out", base, "--layers", "1"); e.Root == all.Root || e.Bytes >= all.Bytes || e.Layers != 1 {
		t.Errorf("the lowest layer: %+v", e)
	}
	u.fails(1, one+": file already exists", "export", ref, "--out", one)
	u.fails(1, "the directory of "+dir+"/no/x", "export", ref, "--out", dir+"/no/x")
	u.fails(cli.ExitUsage, "--layers 3: the image has 2", "export", ref, "--out", dir+"/x", "--layers", "3")
	u.fails(cli.ExitUsage, "--layers -1", "export", ref, "--out", dir+"/x", "--layers", "-1")
	u.fails(cli.ExitUsage, "--out", "export", ref)
	ctx, cancel := context.WithCancel(t.Context())
	s.Intercept(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Header.Get("Range") != "" {
			cancel()
		}
		return false
	})
	if code := u.run(ctx, "export", ref, "--out", dir+"/x"); code != cli.ExitInterrupted {
		t.Errorf("interrupted: exit code %d: %s", code, &u.con.Stderr)
	}
	if got := list(t, dir); got != "base one two" {
		t.Errorf("left behind: %s", got)
	}
}

// Interrupted conversions leave no blobs behind, and no index.
func TestConvertInterrupted(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	ctx, cancel := context.WithCancel(t.Context())
	s.Intercept(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodPost {
			cancel()
		}
		return false
	})
	work := t.TempDir()
	if code := u.run(ctx, "convert", ref, "--work-dir", work); code != cli.ExitInterrupted {
		t.Errorf("exit code %d: %s", code, &u.con.Stderr)
	}
	if got := list(t, work); got != "" {
		t.Errorf("left behind: %s", got)
	}
	s.Intercept(nil)
	u.fails(exit.NotFound, "the image has no index: make one with: dfctl image convert "+ref, "inspect", ref)
}

func TestWrongUse(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref, dir := s.Host+"/app:v1", t.TempDir()
	for _, tt := range []struct {
		args, want string
	}{
		{"convert", "accepts 1 arg(s)"},
		{"convert docker://x/y", "without docker://"},
		{"convert " + dir, "say where the index goes with --to: a directory cannot hold it"},
		{"convert docker-archive:x.tar", "a docker archive cannot hold it"},
		{"convert " + ref + " --to " + dir, "a directory cannot be written"},
		{"convert " + ref + " --to UPPER/x:", "--to"},
		{"convert " + ref + " --to a/b --as-image a/c", "exclude each other"},
		{"convert " + ref + " --as-image a/b --codec none", "do not go with --as-image"},
		{"convert " + ref + " --to a/b@sha256:" + strings.Repeat("0", 64), "leave it out"},
		{"convert " + ref + " --chunk-size 5000", "power of two"},
		{"convert " + ref + " --chunk-size huge", "--chunk-size"},
		{"convert " + ref + " --group-size 4KiB", "--group-size 4KiB"},
		{"convert " + ref + " --level 23", "--level 23: use 1 to 22"},
		{"convert " + ref + " --inline 5000", "--inline 5000"},
		{"convert " + ref + " --memory 1MiB", "at least 32MiB"},
		{"convert " + ref + " --jobs -1", "--jobs -1"},
		{"convert " + ref + " --codec lz4", "use zstd or none"},
		{"convert " + ref + " --platform linux/", "--platform"},
		{"convert " + ref + " --tag a/b", "is no tag"},
		{"convert " + ref + " --key k --no-sign", "exclude each other"},
		{"convert " + ref + " --trust k", "--dictionary"},
		{"convert " + ref + " --dictionary http://x", "--dictionary"},
		{"inspect " + ref + " --platform x/y/z/w", "--platform"},
		{"inspect " + ref + " --largest -1", "--largest"},
		{"inspect " + ref + " -o yaml", "text or json"},
		{"diff " + ref, "accepts 2 arg(s)"},
		{"verify " + ref + " --frob", "unknown flag"},
		{"frob", "unknown command"},
	} {
		u.fails(cli.ExitUsage, tt.want, strings.Fields(tt.args)...)
	}
	if n := s.Requests(); n > 0 {
		t.Errorf("wrong use was found out with %d requests", n)
	}
	u.fails(exit.NotFound, "not found", "convert", ref)
	if _, err := os.Stat(filepath.Join(u.home, ".config")); err == nil {
		t.Error("a mistyped name made a key")
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	dir := t.TempDir()
	u.fails(exit.NotFound, s.Host+"/app:v2", "inspect", s.Host+"/app:v2")
	u.fails(exit.NotFound, "dfctl image convert "+ref, "verify", ref)
	u.fails(exit.NotFound, "it has linux/amd64", "convert", ref, "--platform", "linux/s390x")
	u.fails(exit.NotFound, "not found", "inspect", "oci:"+dir+"/none")
	u.fails(exit.NotFound, "not found", "convert", "docker-archive:"+dir+"/none.tar", "--to", "oci:"+dir+"/x")
	u.fails(1, "key.pem", "convert", ref, "--key", dir+"/key.pem")
	u.fails(1, "work", "convert", ref, "--work-dir", dir+"/work")
	s.Fail("/manifests/", http.StatusUnauthorized)
	u.fails(exit.Refused, "docker login", "inspect", ref)
	empty := s.Host + "/empty:v1"
	s.Intercept(nil)
	s.Put("empty:v1", indextest.Image(t, "amd64"))
	u.fails(1, "no layers", "convert", empty)
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.PutIndex("app:v1", indextest.Index(map[string]ggcr.Image{
		"arm64": indextest.Image(t, "arm64", files{"a": big}), "s390x": indextest.Image(t, "s390x", files{"b": other}),
	}))
	out := u.ok("convert", ref)
	contains(t, out, "(linux/arm64)", "(linux/s390x)")
	contains(t, u.ok("inspect", ref, "--platform", "linux/s390x"), "(linux/s390x)", "/b ")
	contains(t, u.ok("verify", ref, "--platform", "arm64"), "content       ok")
	u.fails(exit.NotFound, "linux/arm64, linux/s390x", "inspect", ref, "--platform", "linux/arm/v7")
	// The dictionary is that of the platform.
	two := s.PutIndex("app:v2", indextest.Index(map[string]ggcr.Image{
		"arm64": indextest.Image(t, "arm64", files{"a": big, "c": "new"}), "riscv64": indextest.Image(t, "riscv64", files{"b": other}),
	}))
	c := decode[images.Conversion](u, 0, "convert", two, "--dictionary", ref)
	if c.Images[0].BlobBytes != 0 || c.Images[1].BlobBytes < int64(len(other)) {
		t.Errorf("blobs of %d and %d bytes", c.Images[0].BlobBytes, c.Images[1].BlobBytes)
	}
}

func TestSourcesAndTargets(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	img, dir := app(t, nil), t.TempDir()
	archive := filepath.Join(dir, "app.tar")
	tag, err := name.NewTag("app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "a/b"), big)
	ref := s.Put("app:v1", img)
	for _, tt := range []struct{ args, result string }{
		{"docker-archive:" + archive + " --to oci:" + dir + "/layout:archive", "oci:" + dir + "/layout:archive"},
		{tree + " --to oci:" + dir + "/layout:tree", "oci:" + dir + "/layout:tree"},
		{ref + " --to oci:" + dir + "/layout:v1", "oci:" + dir + "/layout:v1"},
		{"docker-archive:" + archive + " --to " + s.Host + "/archive:v1", s.Host + "/archive:v1"},
		{tree + " --to " + s.Host + "/tree:v1", s.Host + "/tree:v1"},
		{ref + " --as-image " + s.Host + "/app:lazy", s.Host + "/app:lazy"},
		{"docker-archive:" + archive + " --as-image oci:" + dir + "/lazy:v1", "oci:" + dir + "/lazy:v1"},
	} {
		u.ok(append([]string{"convert"}, strings.Fields(tt.args)...)...)
		contains(t, u.ok("inspect", tt.result), "trusted:       yes")
		contains(t, u.ok("verify", tt.result), "content       ok")
		u.ok("diff", tt.result, tt.result)
		out := filepath.Join(t.TempDir(), "out")
		u.ok("export", tt.result, "--out", out)
	}
	if got := list(t, dir); got != "app.tar layout lazy tree" {
		t.Errorf("left behind: %s", got)
	}
}

// Progress is for people: it fits the terminal, and ends with what was done.
func TestProgress(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("app:v1", app(t, nil))
	u.setup = func(c *outputtest.Console) { c.Columns, c.Step = 80, 200*time.Millisecond }
	u.ok("convert", ref)
	shown := u.con.Stderr.String()
	contains(t, shown, "convert linux/amd64", "push linux/amd64", "100%")
	for line := range strings.Lines(shown) {
		line = strings.NewReplacer("\x1b[1A", "", "\x1b[2A", "", "\x1b[K", "", "\x1b[J", "", "\r", "").Replace(line)
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n >= 80 && !strings.HasPrefix(line, "made the") {
			t.Errorf("line of %d columns: %q", n, line)
		}
	}
	u.ok("verify", ref)
	contains(t, u.con.Stderr.String(), "reading", "100%")
	u.ok("export", ref, "--out", filepath.Join(t.TempDir(), "x"))
	contains(t, u.con.Stderr.String(), "exporting", "100%")
	u.ok("verify", ref, "-o", "json")
	if u.con.Stderr.Len() > 0 {
		t.Errorf("with -o json: %s", &u.con.Stderr)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, sub := range []string{"convert", "inspect", "verify", "diff", "export"} {
		contains(t, u.ok(sub, "--help"), "Exit codes:", "dfctl image "+sub)
	}
}

func TestTablesOfContentsNeedNoIndex(t *testing.T) {
	t.Parallel()
	u, s := newUser(t), indextest.NewRegistry(t, true)
	ref := s.Put("star:v1", indextest.EStargz(t, indextest.Files{"bin/a": big, "etc/motd": "hello"}))
	contains(t, u.ok("inspect", ref), "none; its layers' own tables", "trusted:       yes, bound")
	contains(t, u.ok("verify", ref), "content       ok")
	u.ok("export", ref, "--out", filepath.Join(t.TempDir(), "x"))
}
