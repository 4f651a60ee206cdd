package chunkfmt_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// refused checks that Merge gave up for a reason.
func refused(t *testing.T, want string, err error) {
	t.Helper()
	if !errors.Is(err, chunkfmt.ErrInvalid) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

// One target, which a kilobyte of index can share among thousands of links,
// would make two thousand directories for each.
func TestMergeBoundsMadeDirectories(t *testing.T) {
	target := strings.TrimSuffix(strings.Repeat("a/", 2000), "/")
	merge := func(links int) (*chunkfmt.Tree, error) {
		var lower, upper []step
		for i := range links {
			lower = append(lower, put(fmt.Sprintf("%d/s", i), *symlink(target)))
			upper = append(upper, putFile(fmt.Sprintf("%d/s/f", i), "1"))
		}
		return chunkfmt.Merge(layer(t, lower...), layer(t, upper...))
	}
	_, err := merge(200)
	refused(t, "directories that do not exist", err)
	tree, err := merge(20)
	must(t, err)
	if _, err := tree.Lookup("7/" + target + "/f"); err != nil {
		t.Error(err)
	}
}

// Links to deep targets, each looked up in many layers.
func TestMergeBoundsLookups(t *testing.T) {
	deep := func(i int) string { return fmt.Sprintf("%s%d/f", strings.Repeat("d/", 2000), i) }
	var layers []*chunkfmt.Tree
	for range 40 {
		layers = append(layers, layer(t, putFile(deep(0), "1")))
	}
	var links, files []step
	for i := range 500 {
		files = append(files, putFile(deep(i), "1"))
		links = append(links, putLink(fmt.Sprint(i), deep(i)))
	}
	layers = append(layers, layer(t, files...))
	_, err := chunkfmt.Merge(append(layers, layer(t, links...))...)
	refused(t, "too many directories", err)
	// Many links into one directory are what trees of hard links have.
	links = nil
	for i := range 2000 {
		links = append(links, putLink(fmt.Sprint(i), deep(0)))
	}
	_, err = chunkfmt.Merge(append(layers, layer(t, links...))...)
	must(t, err)
}

// Sets of extended attributes join to as many others as there are pairs.
func TestMergeBoundsUnions(t *testing.T) {
	var big []chunkfmt.Xattr
	for i := range 200 {
		big = append(big, xattr(fmt.Sprintf("user.%d", i), strings.Repeat("x", chunkfmt.MaxXattrValue)))
	}
	merge := func(dirs int) error {
		var lower, upper []step
		for i := range dirs {
			lower = append(lower, putDir(fmt.Sprint(i), 0o755, big...))
			upper = append(upper, putDir(fmt.Sprint(i), 0o755, xattr("user.small", fmt.Sprint(i))))
		}
		_, err := chunkfmt.Merge(layer(t, lower...), layer(t, upper...))
		return err
	}
	refused(t, "combinations", merge(50))
	must(t, merge(4))
}
