package imageindex_test

import (
	"errors"
	"io"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
)

func TestFromTables(t *testing.T) {
	t.Parallel()
	s := indextest.NewRegistry(t, true)
	want := indextest.Files{"bin/a": indextest.Noise(1, 300_000), "etc/b": "small"}
	src := open(t, parse(t, s.Put("star", indextest.EStargz(t, want))))
	r, err := imageindex.Resolve(t.Context(), src, first)
	if err != nil {
		t.Fatal(err)
	}
	l, err := imageindex.FromTables(t.Context(), src, r)
	if err != nil {
		t.Fatal(err)
	}
	if l.Verdict.Reason != trust.Bound || l.Untrusted != nil {
		t.Errorf("verdict %v", l.Verdict)
	}
	tree, err := l.Merge(len(l.Indexes))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Check(tree); err != nil {
		t.Error(err)
	}
	reader := content.NewReader(tree, imageindex.Stored{Source: src}, content.Options{})
	for path, data := range want {
		inode, err := tree.Lookup(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := reader.Open(t.Context(), inode)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != data {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
}

func TestFromTablesNeedsBoundTables(t *testing.T) {
	t.Parallel()
	s := indextest.NewRegistry(t, true)
	src := open(t, parse(t, s.Put("plain", indextest.Image(t, "amd64", indextest.Files{"a": "1"}))))
	r, err := imageindex.Resolve(t.Context(), src, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := imageindex.FromTables(t.Context(), src, r); !errors.Is(err, imageindex.ErrNoIndex) {
		t.Errorf("error %v", err)
	}
}
