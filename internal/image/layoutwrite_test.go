package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func TestLayoutTargetChecksContent(t *testing.T) {
	dir := t.TempDir()
	target := openTarget(t, parse(t, "oci:"+dir), testOptions())
	good := BytesBlob("", noise(1, 3<<20))
	for name, change := range map[string]func(b *Blob){
		"digest":  func(b *Blob) { b.Descriptor.Digest = someDigest },
		"longer":  func(b *Blob) { b.Descriptor.Size++ },
		"shorter": func(b *Blob) { b.Descriptor.Size-- },
	} {
		b := good
		change(&b)
		if _, err := target.PushBlob(t.Context(), b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := good
	broken.Open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(errReader{}), nil }
	if _, err := target.PushBlob(t.Context(), broken); !errors.Is(err, errBroken) {
		t.Errorf("broken: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := target.PushBlob(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tmp") {
			t.Errorf("left behind: %s", e.Name())
		}
	}
	name := filepath.Join(dir, "blobs", "sha256", good.Descriptor.Digest.Encoded())
	write(t, name, "cut off") // as another program's crash may leave it
	if how, err := target.PushBlob(t.Context(), good); err != nil || how != Uploaded {
		t.Errorf("over a damaged file: %v, %v", how, err)
	}
	if info, err := os.Stat(name); err != nil || info.Size() != 3<<20 || info.Mode().Perm() != 0o644 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestLayoutNames(t *testing.T) {
	b := blobs{}
	one, two := b.image(t, "amd64", []byte("1")), b.image(t, "amd64", []byte("2"))
	dir := t.TempDir()
	ref := parse(t, "oci:"+dir)
	target := openTarget(t, ref, testOptions())
	pushAll(t, target, b, one, "a")
	pushAll(t, target, b, one, "b")
	pushAll(t, target, b, two, "docker.io/library/x:a")
	pushAll(t, target, b, two, "a") // moves
	for tag, want := range map[string]string{"a": string(two.Digest), "b": string(one.Digest), "docker.io/library/x:a": string(two.Digest)} {
		img := images(t, open(t, ref.WithTag(tag), testOptions()))[0]
		if string(img.Descriptor.Digest) != want {
			t.Errorf("%s is %s, want %s", tag, img.Descriptor.Digest, want)
		}
	}
	index, err := (&layout{files: dirFiles(dir)}).index()
	if err != nil || len(index.Manifests) != 3 {
		t.Errorf("%+v, %v", index, err)
	}
}

// TestLayoutTogether has writers that each open the layout by themselves, as
// processes do.
func TestLayoutTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	b := blobs{}
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		desc := b.image(t, "amd64", noise(uint64(i), 10))
		data := b[desc.Digest]
		wg.Go(func() {
			target, err := OpenTarget(t.Context(), Ref{Kind: KindLayout, Path: dir}, testOptions())
			if err == nil {
				_, err = target.PushManifest(t.Context(), data, desc.MediaType, fmt.Sprintf("tag%d", i))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	index, err := (&layout{files: dirFiles(dir)}).index()
	if err != nil || len(index.Manifests) != n {
		t.Errorf("%d entries, %v", len(index.Manifests), err)
	}
}

func TestLayoutLockEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	target := openTarget(t, parse(t, "oci:"+dir), testOptions())
	f, err := os.Open(dir)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	b := blobs{}
	desc := b.image(t, "amd64")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := target.PushManifest(ctx, b[desc.Digest], desc.MediaType, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestLayoutOfAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "oci-layout"), `{"imageLayoutVersion":"2.0.0"}`)
	if _, err := OpenTarget(t.Context(), Ref{Kind: KindLayout, Path: dir}, testOptions()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestLayoutTakesFinishedFiles(t *testing.T) {
	dir := t.TempDir()
	content := []byte("finished")
	desc := v1.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(content), Size: int64(len(content))}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	target, err := OpenTarget(t.Context(), Ref{Kind: KindLayout, Path: filepath.Join(dir, "layout")}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Pushed{Uploaded, Existed} {
		how, err := target.PushBlob(t.Context(), OwnFileBlob(desc, file))
		if err != nil || how != want {
			t.Errorf("%v, %v, want %v", how, err, want)
		}
	}
	a, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Stat(filepath.Join(dir, "layout", "blobs", "sha256", desc.Digest.Encoded()))
	if err != nil || !os.SameFile(a, b) {
		t.Errorf("the blob is a copy (%v)", err)
	}
	short := desc
	short.Digest, short.Size = digest.FromString("other"), 5
	if _, err := target.PushBlob(t.Context(), OwnFileBlob(short, file)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file of another length: %v", err)
	}
}
