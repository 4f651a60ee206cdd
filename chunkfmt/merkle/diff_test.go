package merkle_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
)

func changes(a, b *merkle.Tree) []string {
	var lines []string
	for c := range merkle.Diff(a, b) {
		line := fmt.Sprintf("%s /%s", c.Op, c.Path)
		if c.Metadata {
			line += " metadata"
		}
		if c.Content {
			line += " content"
		}
		lines = append(lines, line)
	}
	return lines
}

func TestDiff(t *testing.T) {
	fifo := chunkfmt.Node{Kind: chunkfmt.Fifo}
	tests := map[string]struct {
		old, new func(d *drafter) *drafter
		want     []string
	}{
		"equal": {
			func(d *drafter) *drafter { return d.file("a/b", "1") },
			func(d *drafter) *drafter { return d.inline("a/b", "1") },
			nil,
		},
		"added": {
			func(d *drafter) *drafter { return d.file("a/b", "1") },
			func(d *drafter) *drafter { return d.file("a/b", "1").file("a/a/x", "1").file("z", "1") },
			[]string{"added /a/a", "added /a/a/x", "added /z"},
		},
		"removed": {
			func(d *drafter) *drafter { return d.file("a/b", "1").file("c/d/e", "1") },
			func(d *drafter) *drafter { return d.file("a/b", "1") },
			[]string{"removed /c", "removed /c/d", "removed /c/d/e"},
		},
		"modified": {
			func(d *drafter) *drafter {
				return d.file("a/content", "1", "2").inline("a/both", "1").put("a/meta", fifo).put("l", chunkfmt.Node{Kind: chunkfmt.Symlink, Target: "1"})
			},
			func(d *drafter) *drafter {
				return d.file("a/content", "1", "3").put("a/both", chunkfmt.Node{Kind: chunkfmt.File}).
					put("a/meta", chunkfmt.Node{Kind: chunkfmt.Fifo, UID: 1}).put("l", chunkfmt.Node{Kind: chunkfmt.Symlink, Target: "2"})
			},
			[]string{"modified /a/both metadata content", "modified /a/content content", "modified /a/meta metadata", "modified /l content"},
		},
		"root and directory": {
			func(d *drafter) *drafter { return d.file("a/b", "1").file("a/c", "1") },
			func(d *drafter) *drafter {
				return d.put("/", chunkfmt.Node{Kind: chunkfmt.Dir}).put("a", chunkfmt.Node{Kind: chunkfmt.Dir}).file("a/b", "1").file("a/c", "2")
			},
			[]string{"modified / metadata", "modified /a metadata", "modified /a/c content"},
		},
		"kind": {
			func(d *drafter) *drafter { return d.file("a/b", "1").put("c", fifo) },
			func(d *drafter) *drafter { return d.file("a", "1").file("c/d", "1") },
			[]string{"removed /a", "removed /a/b", "added /a", "removed /c", "added /c", "added /c/d"},
		},
		"hard links": {
			func(d *drafter) *drafter { return d.file("b/x", "1").link("c/x", "b/x").file("d", "1") },
			func(d *drafter) *drafter {
				return d.file("a/x", "1").link("b/x", "a/x").link("c/x", "a/x").file("d", "1")
			},
			[]string{"added /a", "added /a/x", "modified /b/x metadata", "modified /c/x metadata"},
		},
		"copy for hard link": {
			func(d *drafter) *drafter { return d.file("b", "1").link("c", "b") },
			func(d *drafter) *drafter { return d.file("b", "1").file("c", "1") },
			[]string{"modified /b metadata", "modified /c metadata"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := merkle.Hash(tt.old(newDrafter(t)).tree()), merkle.Hash(tt.new(newDrafter(t)).tree())
			got := changes(a, b)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			for i := range got { // stop early anywhere
				n := 0
				for range merkle.Diff(a, b) {
					if n++; n > i {
						break
					}
				}
			}
			if back := changes(b, a); len(back) != len(got) {
				t.Errorf("the other way %q", back)
			}
		})
	}
}
