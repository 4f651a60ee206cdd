package chunkfmt_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

func TestMergeFollowsSymlinks(t *testing.T) {
	base := func() []step {
		return []step{putFile("usr/lib/a", "1"), put("lib", *symlink("usr/lib")), put("usr/up", *symlink("/lib")), put("loop", *symlink("loop"))}
	}
	none := []string{"lib symlink -> usr/lib", "loop symlink -> loop", "usr/lib/a file \"1\"", "usr/up symlink -> /lib"}
	tests := map[string]struct {
		layers [][]step
		want   []string // without the directories
	}{
		"a file":           {[][]step{base(), {putFile("lib/b", "2")}}, append([]string{`usr/lib/b file "2"`}, none...)},
		"over a file":      {[][]step{base(), {putFile("lib/a", "2")}}, []string{none[0], none[1], `usr/lib/a file "2"`, none[3]}},
		"two links":        {[][]step{base(), {putFile("usr/up/x/b", "2")}}, append([]string{`usr/lib/x/b file "2"`}, none...)},
		"both names":       {[][]step{base(), {putFile("lib/b", "2"), putFile("usr/lib/c", "3"), putFile("usr/up/d", "4")}}, append([]string{`usr/lib/b file "2"`, `usr/lib/c file "3"`, `usr/lib/d file "4"`}, none...)},
		"a whiteout":       {[][]step{base(), {remove("lib/a")}}, []string{none[0], none[1], none[3]}},
		"opaque":           {[][]step{base(), {hide("lib"), putFile("lib/b", "2")}}, []string{none[0], none[1], `usr/lib/b file "2"`, none[3]}},
		"a hard link":      {[][]step{base(), {putLink("lib/b", "lib/a")}}, []string{none[0], none[1], `usr/lib/a file "1" links=2`, `usr/lib/b = usr/lib/a 2`, none[3]}},
		"nowhere":          {[][]step{{put("s", *symlink("no/where"))}, {putFile("s/f", "1")}}, []string{`no/where/f file "1"`, "s symlink -> no/where"}},
		"the root":         {[][]step{{put("s", *symlink("/"))}, {putFile("s/f", "1"), putFile("s/s/g", "2")}}, []string{`f file "1"`, `g file "2"`, "s symlink -> /"}},
		"one after one":    {[][]step{base(), {put("usr/lib/l", *symlink("../../opt"))}, {putFile("lib/l/f", "2")}}, append([]string{`opt/f file "2"`, "usr/lib/l symlink -> ../../opt"}, none...)},
		"then replaced":    {[][]step{base(), {putFile("lib/b", "2")}, {putDir("lib", 0o700), putFile("lib/c", "3")}}, []string{`lib/c file "3"`, none[1], none[2], `usr/lib/b file "2"`, none[3]}},
		"then removed":     {[][]step{base(), {putFile("lib/b", "2")}, {remove("lib")}}, []string{none[1], none[2], `usr/lib/b file "2"`, none[3]}},
		"removed before":   {[][]step{base(), {remove("lib"), putFile("lib/b", "2")}}, []string{`lib/b file "2"`, none[1], none[2], none[3]}},
		"hard linked link": {[][]step{base(), {putLink("l2", "lib")}, {putFile("l2/b", "2")}}, []string{"l2 symlink -> usr/lib links=2", "lib = l2 2", none[1], none[2], `usr/lib/b file "2"`, none[3]}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var trees []*chunkfmt.Tree
			for _, steps := range tt.layers {
				trees = append(trees, layer(t, steps...))
			}
			tree, err := chunkfmt.Merge(trees...)
			must(t, err)
			checkMerged(t, tree)
			got := slices.DeleteFunc(list(tree), func(s string) bool { return strings.Contains(s, " dir ") })
			// Attributes are not what this is about.
			for i, s := range got {
				if at := strings.Index(s, " mode="); at >= 0 {
					got[i] = s[:at]
				}
			}
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(tt.want, "\n\t"))
			}
		})
	}
}

func TestMergeRefusesPaths(t *testing.T) {
	long := strings.Repeat("d/", 1249) + "d"
	base := func() []step {
		return []step{putFile(long+"/f", ""), put("deep", *symlink(long)), putFile("f", "1"), put("s", *symlink("f")), put("loop", *symlink("loop")), putFile("d/x", ""), put("t", *symlink("d"))}
	}
	for _, tt := range []struct {
		step step
		want string
	}{
		{putFile("f/x", ""), "f is no directory"},
		{remove("f/x"), "f is no directory"},
		{putFile("s/x", ""), "f is no directory"},
		{putFile("loop/x", ""), "too many symbolic links"},
		{putLink("t/x", "d/x"), "hard link to itself"},
		{putFile("deep/"+long+"/x", ""), " has a path of "},
	} {
		_, err := chunkfmt.Merge(layer(t, base()...), layer(t, tt.step))
		if !errors.Is(err, chunkfmt.ErrInvalid) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "layer 1") {
			t.Errorf("error %v, want %s", err, tt.want)
		}
	}
}

// TestMergeFollowsManySymlinks has each directory lead to the next.
func TestMergeFollowsManySymlinks(t *testing.T) {
	var links, files []step
	for i := range 100 {
		links = append(links, put(fmt.Sprintf("s%d", i), *symlink(fmt.Sprintf("s%d", i+1))))
		files = append(files, putFile(fmt.Sprintf("s%d/f%d", i, i), ""))
	}
	tree, err := chunkfmt.Merge(layer(t, links...), layer(t, files...))
	must(t, err)
	checkMerged(t, tree)
	dir, err := tree.Lookup("s100")
	must(t, err)
	if n := tree.Inodes[dir].Count; n != 100 {
		t.Errorf("%d files, want 100", n)
	}
}
