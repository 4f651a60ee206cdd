package content_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
)

func lookup(t testing.TB, tree *chunkfmt.Tree, name string) uint32 {
	t.Helper()
	inode, err := tree.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

func TestReadWholeFiles(t *testing.T) {
	tree, src, contents := sample(t)
	r := content.NewReader(tree, src, content.Options{})
	for name, want := range contents {
		f, err := r.Open(t.Context(), lookup(t, tree, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(f, want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadAt(t *testing.T) {
	tree, src, contents := sample(t)
	r := content.NewReader(tree, src, content.Options{})
	random := rand.New(rand.NewSource(1))
	for name, want := range contents {
		inode := lookup(t, tree, name)
		for range 100 {
			off, n := random.Intn(len(want)+2), random.Intn(len(want)+2)
			p := make([]byte, n)
			got, err := r.ReadAt(t.Context(), inode, p, int64(off))
			rest := want[min(off, len(want)):]
			if !bytes.Equal(p[:got], rest[:min(n, len(rest))]) {
				t.Fatalf("%s: %d bytes at %d: wrong bytes", name, n, off)
			}
			if (err == io.EOF) != (n > len(rest)) || err != nil && err != io.EOF { //nolint:errorlint // ReaderAt returns it bare
				t.Fatalf("%s: %d bytes at %d of %d: %v", name, n, off, len(want), err)
			}
		}
		if _, err := r.ReadAt(t.Context(), inode, make([]byte, 1), -1); err == nil {
			t.Errorf("%s: no error at -1", name)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	tree, src, _ := sample(t)
	r := content.NewReader(tree, src, content.Options{})
	for _, inode := range []uint32{0, uint32(len(tree.Inodes))} {
		if _, err := r.Open(t.Context(), inode); err == nil {
			t.Errorf("inode %d: no error", inode)
		}
	}
	for _, ref := range []chunkfmt.GroupRef{{Blob: 9}, {Blob: 0, Group: 9}, {Blob: 0, Group: 2}} {
		if _, err := r.Group(t.Context(), ref); !errors.Is(err, chunkfmt.ErrInvalid) {
			t.Errorf("group %+v: %v", ref, err)
		}
	}
}

func TestCache(t *testing.T) {
	tree, src, _ := sample(t)
	group := func(r *content.Reader, ref chunkfmt.GroupRef) {
		t.Helper()
		if _, err := r.Group(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	first, second := chunkfmt.GroupRef{Blob: 0, Group: 0}, chunkfmt.GroupRef{Blob: 0, Group: 3}
	for _, c := range []struct {
		limit, reads int64
	}{
		{0, 2},       // both are kept
		{20_000, 4},  // only the last
		{-1, 4},      // none
		{100_000, 2}, // both
	} {
		src.reads.Store(0)
		r := content.NewReader(tree, src, content.Options{CacheBytes: c.limit})
		group(r, first)
		group(r, second)
		group(r, first)
		group(r, second)
		if got := src.reads.Load(); got != c.reads {
			t.Errorf("limit %d: %d reads, want %d", c.limit, got, c.reads)
		}
	}
}

// gate is a Source that waits to be let through.
type gate struct {
	content.Source
	let chan error
}

func (g gate) ReadAt(ctx context.Context, b *chunkfmt.Blob, p []byte, off int64) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-g.let:
		if err != nil {
			return err
		}
	}
	return g.Source.ReadAt(ctx, b, p, off)
}

// storedPlain is a group of the sample that needs no decoder: decoders are kept
// for the whole process, which one made inside a bubble of synctest must not
// outlive.
var storedPlain = chunkfmt.GroupRef{Group: 3}

func TestConcurrentReadersShareAFetch(t *testing.T) {
	tree, src, _ := sample(t)
	synctest.Test(t, func(t *testing.T) {
		g := gate{src, make(chan error)}
		r := content.NewReader(tree, g, content.Options{})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := r.Group(t.Context(), storedPlain); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		g.let <- nil
		wg.Wait()
	})
	if got := src.reads.Load(); got != 1 {
		t.Errorf("%d reads", got)
	}
}

func TestFailedFetchIsSharedAndNotKept(t *testing.T) {
	tree, src, _ := sample(t)
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("connection reset")
		g := gate{src, make(chan error)}
		r := content.NewReader(tree, g, content.Options{})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := r.Group(t.Context(), storedPlain); !errors.Is(err, broken) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		g.let <- broken
		wg.Wait()
		close(g.let)
		if _, err := r.Group(t.Context(), storedPlain); err != nil {
			t.Error(err)
		}
	})
}

func TestReaderThatGivesUpLeavesTheOthers(t *testing.T) {
	tree, src, _ := sample(t)
	synctest.Test(t, func(t *testing.T) {
		g := gate{src, make(chan error)}
		r := content.NewReader(tree, g, content.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Group(ctx, storedPlain); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 2 {
			wg.Go(func() {
				if _, err := r.Group(t.Context(), storedPlain); err != nil {
					t.Error(err)
				}
			})
		}
		impatient, stop := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := r.Group(impatient, storedPlain); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		stop()
		cancel()
		synctest.Wait()
		g.let <- nil
		wg.Wait()
	})
}

func TestFlippedByteIsNoticed(t *testing.T) {
	tree, src, contents := sample(t)
	for name := range contents {
		inode := lookup(t, tree, name)
		for _, ref := range tree.GroupsOf(inode, 0, 1<<40) {
			b, g := &tree.Blobs[ref.Blob], tree.Group(ref)
			blob := src.blobs[b.Digest]
			at := g.Offset + 20
			blob[at] ^= 4
			r := content.NewReader(tree, src, content.Options{})
			f, err := r.Open(t.Context(), inode)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(f)
			if !errors.Is(err, content.ErrCorrupt) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), b.Digest.String()) {
				t.Errorf("%s: error %v", name, err)
			}
			blob[at] ^= 4
		}
	}
}

func TestExternalBlob(t *testing.T) {
	tree, src, _ := sample(t)
	tree.Blobs[0].External, tree.Blobs[0].Groups = true, nil
	r := content.NewReader(tree, src, content.Options{})
	if _, err := r.ReadAt(t.Context(), lookup(t, tree, "gzip"), make([]byte, 1), 0); !errors.Is(err, chunkfmt.ErrInvalid) {
		t.Errorf("error %v", err)
	}
}
