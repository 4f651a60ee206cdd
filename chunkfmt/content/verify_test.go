package content_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
)

func verify(t *testing.T, tree *chunkfmt.Tree, src content.Source, o content.VerifyOptions) []content.Failure {
	t.Helper()
	failures, err := content.VerifyBlobs(t.Context(), tree, src, o)
	if err != nil {
		t.Fatal(err)
	}
	return failures
}

func TestVerifyBlobs(t *testing.T) {
	tree, src, _ := sample(t)
	for _, workers := range []int{0, 1, 7} {
		var last content.Progress
		calls := 0
		failures := verify(t, tree, sized{src}, content.VerifyOptions{Workers: workers, Progress: func(p content.Progress) {
			calls++
			if p.Groups != calls || p.Bytes <= last.Bytes {
				t.Errorf("progress %+v after %+v", p, last)
			}
			last = p
		}})
		if len(failures) > 0 {
			t.Errorf("failures %v", failures)
		}
		if last.Groups != last.TotalGroups || last.Bytes != last.TotalBytes || calls != 6 {
			t.Errorf("the last progress is %+v after %d calls", last, calls)
		}
	}
}

func TestVerifyBlobsNamesFiles(t *testing.T) {
	for _, c := range []struct {
		blob, group int
		paths       []string
	}{
		{0, 0, []string{"sparse", "zstd/ab", "zstd/b", "repeats"}},
		{0, 1, []string{"gzip"}},
		{0, 2, nil}, // the filler
		{0, 3, []string{"plain", "repeats", "sparse"}},
		{1, 0, []string{"unproven/zstd"}},
		{1, 1, []string{"unproven/gzip", "unproven/small"}},
	} {
		tree, src, _ := sample(t)
		b := &tree.Blobs[c.blob]
		src.blobs[b.Digest][b.Groups[c.group].Offset+3] ^= 0x10
		failures := verify(t, tree, src, content.VerifyOptions{MaxFailures: 10})
		if len(failures) != 1 {
			t.Errorf("blob %d, group %d: %v", c.blob, c.group, failures)
			continue
		}
		f := failures[0]
		slices.Sort(f.Paths)
		slices.Sort(c.paths)
		if !slices.Equal(f.Paths, c.paths) || f.Blob != b.Digest || f.Group != c.group || !errors.Is(f, content.ErrCorrupt) {
			t.Errorf("blob %d, group %d: %v, paths %q", c.blob, c.group, f, f.Paths)
		}
		for _, p := range c.paths {
			if !strings.Contains(f.Error(), p) {
				t.Errorf("the error does not name %s: %v", p, f)
			}
		}
	}
}

func TestVerifyBlobsNamesTheChunk(t *testing.T) {
	tree, src, _ := sample(t)
	for i := range tree.Chunks {
		c := &tree.Chunks[i]
		if c.Blob == 0 && c.Group == 3 && c.Offset == 0 {
			c.Digest[5]++ // of "plain" alone
		}
	}
	failures := verify(t, tree, src, content.VerifyOptions{MaxFailures: 10})
	if len(failures) != 1 || !slices.Equal(failures[0].Paths, []string{"plain"}) {
		t.Errorf("failures %v", failures)
	}
}

func TestVerifyBlobsHoles(t *testing.T) {
	tree, src, _ := sample(t)
	tree.Chunks[1].Digest[5]++
	failures := verify(t, tree, src, content.VerifyOptions{})
	if len(failures) != 1 || !slices.Equal(failures[0].Paths, []string{"sparse"}) {
		t.Errorf("failures %v", failures)
	}
}

// The chunks of a file are gone through once, not once for each of its names:
// that would take minutes here.
func TestVerifyBlobsOfManyLinks(t *testing.T) {
	const links, runs = 20_000, 1 << 20
	tree := &chunkfmt.Tree{
		Inodes: []chunkfmt.Inode{{Nlink: 2, Count: links}, {Attr: 1, Nlink: links, Size: runs, Count: runs}},
		Attrs:  []chunkfmt.Attr{{Kind: chunkfmt.Dir}, {Kind: chunkfmt.File}},
		Xattrs: [][]chunkfmt.Xattr{nil},
		Runs:   slices.Repeat([]chunkfmt.Run{{Count: 1}}, runs),
		Chunks: []chunkfmt.Chunk{{Blob: chunkfmt.Hole, Length: 1, Digest: chunkfmt.Sum([]byte("no zero"))}},
	}
	for i := range links {
		tree.Entries = append(tree.Entries, chunkfmt.Entry{Name: fmt.Sprintf("%05d", i), Inode: 1})
	}
	failures := verify(t, tree, &memory{}, content.VerifyOptions{})
	if len(failures) != 1 || len(failures[0].Paths)+failures[0].More != links {
		t.Errorf("failures %.500v", failures)
	}
}

func TestVerifyBlobsLengths(t *testing.T) {
	tree, good, _ := sample(t)
	digest := tree.Blobs[0].Digest
	for name, change := range map[string]func(*memory){
		"missing": func(m *memory) { delete(m.blobs, digest) },
		"short":   func(m *memory) { m.blobs[digest] = m.blobs[digest][:len(m.blobs[digest])-1] },
		"long":    func(m *memory) { m.blobs[digest] = append(bytes.Clone(m.blobs[digest]), 0) },
	} {
		src := &memory{blobs: map[chunkfmt.Digest][]byte{}}
		for d, p := range good.blobs {
			src.blobs[d] = p
		}
		change(src)
		failures := verify(t, tree, sized{src}, content.VerifyOptions{MaxFailures: 100})
		if len(failures) != 1 || failures[0].Group != -1 || !slices.Contains(failures[0].Paths, "plain") ||
			!strings.Contains(failures[0].Error(), digest.String()) {
			t.Errorf("%s: %v", name, failures)
		}
		failures = verify(t, tree, src, content.VerifyOptions{MaxFailures: 100})
		if want := map[string]int{"missing": 4, "short": 1, "long": 0}[name]; len(failures) != want {
			t.Errorf("%s, without sizes: %v", name, failures)
		}
	}
}

func TestVerifyBlobsStopsAtTheLimit(t *testing.T) {
	tree, _, _ := sample(t)
	src := &memory{}
	for limit, want := range map[int]int{0: 1, 3: 3, 100: 6} {
		if got := verify(t, tree, src, content.VerifyOptions{Workers: 1, MaxFailures: limit}); len(got) != want {
			t.Errorf("limit %d: %d failures", limit, len(got))
		}
	}
}

func TestVerifyBlobsCanceled(t *testing.T) {
	tree, src, _ := sample(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := content.VerifyBlobs(ctx, tree, src, content.VerifyOptions{Workers: 2, Progress: func(content.Progress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
