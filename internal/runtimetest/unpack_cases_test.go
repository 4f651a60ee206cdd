package runtimetest

import (
	"archive/tar"
	"fmt"
	"strings"
)

// unpackCase is an image that is hard to unpack.
type unpackCase struct {
	name   string
	layers [][]member
	// tail is added to the tar of the uppermost layer instead of its zero
	// blocks.
	tail []byte
	// refused is why the uppermost layer cannot be unpacked; containerd and we
	// must both say so. names are parts of our message.
	refused string
	names   []string
	// differs is why our tree is not what containerd's native snapshotter makes
	// of the uppermost layer; want has the files that it must have, by path.
	differs string
	want    map[string]string
	// overlay is why containerd's overlayfs snapshotter, which unpacks a layer
	// without seeing those below, disagrees with its native one. Empty: it must
	// agree.
	overlay string
	// unlike are fields, by path, which containerd does not get from the layers.
	unlike map[string][]field

	inPlace int // layers that were indexed in place
}

// none is the content of what must not be there.
const none = "\x00"

// Reasons why overlayfs and native snapshots differ.
const (
	overlayLinks    = "hard links to lower layers are refused"
	overlaySymlinks = "symbolic links of lower layers are not followed"
	overlayXattrs   = "directories hide those of lower layers with their xattrs"
	overlayWhiteout = "a directory after a whiteout of its name, or another type, is not made opaque"
	overlayDevices  = "whiteouts are devices, which are in the way, or are seen where no lower layer has the directory"
	overlayMknod    = "a whiteout of a name that the same layer has fails"
	overlayOpaque   = "the attribute of an opaque directory is shown, or hides nothing in the same layer"
)

func unpackCases() []unpackCase {
	var all []unpackCase
	for _, cases := range [][]unpackCase{linkCases(), typeCases(), symlinkCases(), whiteoutCases(), nameCases(), metaCases(), contentCases(), formatCases(), refusedCases()} {
		all = append(all, cases...)
	}
	return all
}

func linkCases() []unpackCase {
	return []unpackCase{
		{name: "links in a layer", layers: [][]member{{
			dir("a"), file("a/f", "content"), hard("a/g", "a/f"), dir("b"), hard("b/h", "a/g"), hard("top", "./b/h"), hard("abs", "/a/f"),
		}}},
		{name: "links to lower layers", overlay: overlayLinks, layers: [][]member{
			{dir("a"), file("a/f", "content"), hard("a/g", "a/f")},
			{hard("b", "a/g")},
			{hard("c", "b"), dir("d"), hard("d/e", "a/f")},
		}},
		{name: "link replaced later in the tar", layers: [][]member{{
			file("f", "one"), hard("g", "f"), file("f", "two"), hard("h", "f"), file("h", "three"), hard("i", "g"),
		}}},
		{name: "link replaced in the next layer", layers: [][]member{
			{file("f", "one"), hard("g", "f"), hard("h", "f")},
			{file("g", "two")},
			{whiteout("f"), file("new", "")},
		}},
		{name: "link to a lower file that is replaced after", overlay: overlayLinks, layers: [][]member{
			{file("f", "one")},
			{hard("g", "f"), file("f", "two"), hard("h", "f")},
		}},
		{name: "link to a lower file that is removed after", overlay: overlayLinks, layers: [][]member{
			{file("f", "one"), dir("d"), file("d/f", "two")},
			{hard("g", "f"), whiteout("f"), hard("h", "d/f"), whiteout("d")},
		}},
		{name: "link to a symlink", layers: [][]member{{
			file("f", "one"), symlink("s", "f"), hard("t", "s"), special(tar.TypeFifo, "p", 0, 0), hard("q", "p"),
			special(tar.TypeChar, "c", 1, 3), hard("d", "c"),
		}}},
		{name: "links to special files of lower layers", overlay: overlayLinks, layers: [][]member{
			{symlink("s", "nowhere"), special(tar.TypeFifo, "p", 0, 0), special(tar.TypeBlock, "c", 8, 1)},
			{hard("t", "s"), hard("q", "p"), hard("d", "c")},
		}},
		{name: "link through symlinked directories", overlay: overlayLinks, layers: [][]member{
			{dir("usr"), dir("usr/lib"), file("usr/lib/f", "one"), symlink("lib", "usr/lib"), hard("g", "lib/f")},
			{hard("h", "lib/f"), hard("usr/i", "lib/../lib/f")},
		}},
		{name: "link's header is what the file is from then on", layers: [][]member{{
			file("f", "one", mode(0o4711), owner(1, 2), at(10, 20)), hard("g", "f", mode(0o600), owner(3, 4), at(30, 40)),
		}}},
		{name: "link's header changes a lower file", overlay: overlayLinks, layers: [][]member{
			{file("f", "one", mode(0o711), owner(1, 2), at(10, 20), xattr("user.a", "1")), file("k", "")},
			{hard("g", "f", mode(0o600), owner(3, 4), at(30, 40), xattr("user.b", "2"))},
		}},
		{name: "link's header drops capabilities", layers: [][]member{{
			file("f", "one", xattr("security.capability", capability), xattr("user.a", "1")),
			hard("g", "f", paxed(map[string]string{"SCHILY.xattr.user.b": "2"})),
		}}},
		{name: "link over something else", layers: [][]member{
			{file("f", "one"), dir("d"), file("d/x", ""), symlink("s", "d")},
			{file("n", "two"), hard("f", "n"), hard("d", "n"), hard("s", "n")},
		}},
		{name: "link to itself under another spelling", refused: "the name is removed before it is linked", names: []string{"a/f"}, layers: [][]member{{
			dir("a"), file("a/f", "one"), hard("a/f", "./a/../a/f"),
		}}},
	}
}

func typeCases() []unpackCase {
	return []unpackCase{
		{name: "everything replaces everything", layers: [][]member{
			{file("fd", "1"), dir("df"), file("df/x", "2"), dir("ds"), file("ds/x", "3"), symlink("sd", "df"), symlink("sf", "df"), file("fs", "4"),
				special(tar.TypeFifo, "pf", 0, 0), file("fp", "5"), dir("dp"), file("dp/y", "")},
			{dir("fd"), file("fd/x", "6"), file("df", "7"), symlink("ds", "fd"), dir("sd"), file("sd/y", "8"), file("sf", "9"), symlink("fs", "fd"),
				file("pf", "10"), special(tar.TypeFifo, "fp", 0, 0), special(tar.TypeChar, "dp", 5, 1)},
			{file("fd", "11"), dir("df"), dir("ds"), symlink("sd", "ds"), dir("sf"), dir("fs"), dir("pf"), dir("fp"), dir("dp")},
		}},
		{name: "directory over directory", overlay: overlayXattrs, layers: [][]member{
			{dir("d", xattr("user.a", "1"), xattr("user.b", "2")), file("d/x", "1"), dir("d/e"), file("d/e/y", "2")},
			{dir("d", xattr("user.b", "3"), xattr("user.c", "4")), file("d/z", "3")},
			{dir("d"), dir("d/e", mode(0o1777))},
		}},
		{name: "duplicate entries", layers: [][]member{{
			file("f", "one"), file("f", "two"), symlink("s", "a"), symlink("s", "b"), dir("d", xattr("user.a", "1")), file("d/x", "1"), dir("d", mode(0o2755)), file("./d//x", "2"),
			file("g", "longer than the next"), file("/g", "short"),
		}}},
		{name: "a type after another in one tar", overlay: overlayWhiteout, unlike: map[string][]field{"f": {fMtime}}, layers: [][]member{
			{dir("d"), file("d/low", ""), dir("e"), file("e/low", ""), dir("g"), file("g/low", "")},
			// What replaces a directory has its time in containerd, which sets the
			// times of directories last, by name.
			{dir("f"), file("f/x", ""), file("f", "one"), file("d", "two"), dir("d"), file("d/x", "three"), symlink("e", "d"), dir("e"), file("e/y", ""),
				file("n", ""), hard("g", "n"), dir("g")},
		}},
		{name: "devices and fifos", layers: [][]member{{
			special(tar.TypeChar, "null", 1, 3, mode(0o666)), special(tar.TypeBlock, "sda", 8, 0), special(tar.TypeChar, "big", 4095, 1048575), special(tar.TypeFifo, "pipe", 0, 0, mode(0o6622)),
			special(tar.TypeChar, "minor", 10, 256), special(tar.TypeChar, "nil", 0, 1),
		}}},
	}
}

func symlinkCases() []unpackCase {
	return []unpackCase{
		{name: "symlinked parents in a layer", layers: [][]member{{
			dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", "1"), symlink("usr/up", "../lib"), file("usr/up/y", "2"),
			symlink("abs", "/usr"), file("abs/lib/z", "3"), symlink("out", "../../../usr"), file("out/w", "4"), file("abs/../lib/v", "5"),
		}}},
		{name: "symlinked parents of a lower layer", overlay: overlaySymlinks, layers: [][]member{
			{dir("usr"), dir("usr/lib"), dir("usr/lib/sub"), file("usr/lib/sub/old", ""), symlink("lib", "usr/lib"), symlink("usr/up", "/lib"), symlink("out", "../../usr")},
			{file("lib/x", "1"), file("usr/up/sub/y", "2"), dir("out/made"), symlink("lib/sub/s", "x")},
			{file("lib/x", "3"), whiteout("lib/sub/old"), file("out/lib/sub/w", "4"), hard("lib/v", "lib/x")},
		}},
		{name: "directory entry over a symlink of a lower layer", overlay: "", layers: [][]member{
			{dir("usr"), dir("usr/lib"), file("usr/lib/low", ""), symlink("lib", "usr/lib")},
			{dir("lib"), file("lib/x", "1")},
		}},
		{name: "opaque directory through a symlink", overlay: overlaySymlinks, layers: [][]member{
			{dir("usr"), dir("usr/lib"), file("usr/lib/low", ""), symlink("lib", "usr/lib")},
			{opaque("lib"), file("lib/x", "1")},
		}},
		{name: "symlinked parents that lead nowhere", overlay: overlaySymlinks, layers: [][]member{
			{symlink("a", "nowhere/at/all"), symlink("b", "a/sub")},
			{file("a/x", "1")},
			{file("b/y", "2"), whiteout("a/gone")},
		}},
		{
			name: "symlinks through a symlink's parent", overlay: overlaySymlinks, layers: [][]member{
				{dir("r"), dir("r/x"), dir("r/x/y"), dir("c"), symlink("b", "r/x/y"), symlink("rel", "b/../f"), symlink("abs", "/b/../f"), dir("f"), dir("r/x/f")},
				{file("rel/1", "1"), file("abs/2", "2"), file("abs/sub/3", "3")},
			},
			differs: `containerd takes ".." in a symlink's target for the parent of where it has come, unless more names follow, and then for the name before; we do always the second`,
			want:    map[string]string{"f/1": "1", "f/2": "2", "f/sub/3": "3", "r/x/f/1": none},
		},
		{name: "symlink replaced by a directory, then used", overlay: overlaySymlinks, layers: [][]member{
			{dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib")},
			{file("lib/x", "1")},
			{dir("lib"), file("lib/y", "2")},
			{file("lib/z", "3")},
		}},
		{name: "symlink removed by a whiteout, then a directory", overlay: overlayDevices, layers: [][]member{
			{dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib")},
			{whiteout("lib"), file("lib/x", "1")},
		}},
		{name: "symlink targets are kept as they are", layers: [][]member{{
			symlink("dot", "./a/../b//c/"), symlink("up", "../../.."), symlink("abs", "//x/./y"), symlink("long", strings.Repeat("0123456789/", 372)), symlink("bytes", "\xff\xfe\n"),
		}}},
		{name: "symlink made and replaced in one tar", layers: [][]member{{
			dir("d"), symlink("s", "d"), file("s/in-d", "1"), dir("s"), file("s/in-s", "2"),
		}}},
	}
}

func whiteoutCases() []unpackCase {
	return append([]unpackCase{
		{name: "whiteouts", layers: [][]member{
			{file("f", "1"), dir("d"), file("d/x", "2"), dir("d/e"), file("d/e/y", "3"), file("g", "4"), hard("h", "g"), symlink("s", "d"), file("keep", "")},
			{whiteout("f"), whiteout("d"), whiteout("g"), whiteout("s"), whiteout("nothing")},
			{file("f", "5"), file("d", "6"), dir("g"), dir("s")},
		}},
		{name: "whiteout in a directory that nobody lists", layers: [][]member{
			{dir("d", mode(0o700)), file("d/x", "1"), file("d/y", "2")},
			{whiteout("d/x")},
			{whiteout("d/y"), file("z", "")},
		}},
		{name: "whiteout of nothing makes its directory", overlay: overlayDevices, layers: [][]member{
			{file("f", "")},
			{whiteout("new/deep/x")},
			{file("new/y", "")},
		}},
		{name: "whiteout, then a directory in the same layer", overlay: overlayWhiteout, layers: [][]member{
			{dir("d", mode(0o700), xattr("user.a", "1")), file("d/low", "1"), dir("e", mode(0o700), xattr("user.a", "1")), file("e/low", "2"), dir("e/sub"), file("e/sub/x", "")},
			{whiteout("d"), whiteout("e"), dir("d"), file("d/up", "3"), file("e/up", "4"), dir("e/sub")},
			{whiteout("e/sub"), file("e/sub/z", ""), dir("d")},
		}},
		{name: "whiteout, then a file in the same layer", layers: [][]member{
			{file("f", "1"), dir("d"), file("d/x", ""), file("g", "")},
			{whiteout("f"), whiteout("d"), file("f", "2"), symlink("d", "f")},
		}},
		{name: "layer of whiteouts only", layers: [][]member{
			{file("f", "1"), file("g", ""), dir("d"), file("d/x", "")},
			{whiteout("f"), whiteout("d/x")},
			{whiteout("g"), whiteout("d")},
		}},
		{name: "layers of nothing", layers: [][]member{{}, {file("f", "1")}, {}, {whiteout("f")}, {}}},
		{name: "whiteouts in the lowest layer", overlay: overlayDevices, layers: [][]member{
			{file("f", "1"), whiteout("g"), opaque("d"), file("d/x", "2")},
			{file("g", "3")},
		}},
		{name: "whiteout of a name with the prefix", layers: [][]member{
			{file("x", "1"), file(".wh", "2")},
			{file(".wh..wh.x", ""), whiteout(".wh")},
		}},
		{
			name: "metadata of aufs", layers: [][]member{{file("f", "1"), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "2"), file(".wh..wh.aufs", "3"), dir(".wh..wh.orph")}},
			differs: "names with the prefix are no files (OCI); containerd makes those in directories of such names",
			want:    map[string]string{"f": "1", ".wh..wh.plnk/1.2": none, ".wh..wh.plnk": none, ".wh..wh.aufs": none},
		},
		{name: "whiteouts that are no files", layers: [][]member{
			{file("a", "1"), file("b", "2"), dir("c"), file("d", "3"), file("keep", "")},
			{dir(".wh.a"), symlink(".wh.b", "keep"), hard(".wh.c", "nowhere"), special(tar.TypeChar, ".wh.d", 0, 0)},
		}},
	}, opaqueCases()...)
}

func opaqueCases() []unpackCase {
	lower := func() []member {
		return []member{dir("d", mode(0o700), xattr("user.a", "1")), file("d/x", "1"), dir("d/e", mode(0o711)), file("d/e/y", "2"), file("f", "3")}
	}
	return []unpackCase{
		{name: "opaque directory with an entry", overlay: overlayOpaque, layers: [][]member{lower(), {dir("d"), opaque("d"), file("d/z", "4")}}},
		{name: "opaque directory after its children", overlay: overlayOpaque, layers: [][]member{lower(), {dir("d"), file("d/x", "4"), dir("d/e"), file("d/e/z", "5"), opaque("d")}}},
		{name: "opaque directory without an entry", overlay: overlayOpaque, layers: [][]member{lower(), {opaque("d"), file("d/z", "4")}}},
		{name: "opaque directory with nothing", overlay: overlayOpaque, layers: [][]member{lower(), {opaque("d")}, {opaque("d/e"), opaque("new")}}},
		{name: "opaque root", overlay: overlayOpaque, layers: [][]member{lower(), {opaque(""), file("g", "4"), dir("d")}, {file("d/x", "")}}},
		{name: "opaque in opaque", overlay: overlayOpaque, layers: [][]member{lower(), {dir("d"), opaque("d"), dir("d/e"), opaque("d/e"), file("d/e/z", "4")}, {file("d/e/y", "5")}}},
		{name: "whiteout and opaque", overlay: overlayOpaque, layers: [][]member{lower(), {whiteout("d"), dir("d"), opaque("d"), whiteout("d/x"), file("d/e/z", "4")}}},
		{name: "opaque directory replaced above", overlay: overlayOpaque, layers: [][]member{lower(), {opaque("d")}, {file("d", "4")}, {dir("d")}}},
		{
			name: "whiteout of a file of the same layer", layers: [][]member{lower(), {file("f", "4"), whiteout("f"), file("d/z", "5"), whiteout("d")}},
			differs: "OCI: whiteouts apply to lower layers only; containerd removes what it has unpacked, or fails with overlayfs",
			want:    map[string]string{"f": "4", "d/z": "5", "d/x": none, "d/e": none}, overlay: overlayMknod,
		},
		{
			name: "opaque after children in directories that nobody lists", layers: [][]member{lower(), {file("d/e/z", "4"), opaque("d")}},
			differs: "OCI: opaque whiteouts apply to lower layers only; containerd removes what it has unpacked below directories without entries",
			want:    map[string]string{"d/e/z": "4", "d/x": none, "d/e/y": none}, overlay: overlayOpaque,
		},
	}
}

func nameCases() []unpackCase {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat(strings.Repeat("d", 99)+"/", 38)
	return []unpackCase{
		{name: "spellings of names", layers: [][]member{{
			file("./dot", "1"), file("/abs", "2"), file("../up", "3"), dir("./dir/"), file("dir/../../other", "4"), file("dir//twice", "5"), file("a/./b/../c", "6"), symlink("/link", "/abs"), hard("../hard", "../../abs"),
		}, {
			file("./dir/./.wh.twice", ""), file("/.wh.dot", ""), file("../.wh.abs", ""),
		}}},
		{name: "the root", layers: [][]member{
			{dir(".", mode(0o700), owner(5, 6), xattr("user.root", "1")), file("f", "1")},
			{dir("/", mode(0o1777)), file("g", "2"), newMember(tar.TypeReg, "a/..", "ignored", nil), symlink(".", "f"), symlink("..", "f")},
		}},
		{name: "missing parents", layers: [][]member{
			{file("a/b/c/d", "1")},
			{file("a/e/f", "2"), dir("a/b", mode(0o700))},
			{dir("a"), file("a/b/c/g", "3")},
		}},
		{name: "parents after their children", layers: [][]member{{file("a/b/c", "1"), dir("a/b", mode(0o700)), dir("a", mode(0o711))}}},
		{name: "long names", layers: [][]member{{
			file(long, "1"), dir("d"), file("d/"+long, "2"), symlink("s"+long[1:], long), hard("h"+long[1:], "d/"+long), file(strings.Repeat("é", 127), "3"),
		}, {
			// The whiteout's name would be too long for a file, but not for a tar;
			// containerd makes none.
			whiteout("s" + long[1:252]), file("d/"+long, "4"),
		}}},
		{name: "deep paths", layers: [][]member{
			{file(deep+"f", "1"), symlink(deep+"s", deep[:3700])},
			{file(deep+"g", "2"), hard(deep+"h", deep+"f"), whiteout(deep + "s")},
		}, overlay: overlayLinks},
		{name: "GNU long names", layers: [][]member{{
			file(strings.Repeat("p/", 120)+"f", "1", form(tar.FormatGNU), at(77, 0)), symlink("s", strings.Repeat("t", 300), form(tar.FormatGNU), at(78, 0)),
			file(strings.Repeat("u", 90)+"/"+strings.Repeat("v", 90), "2", form(tar.FormatUSTAR)),
		}}},
		{name: "odd bytes", layers: [][]member{{
			file("new\nline", "1"), file("\xff\xfe", "2", form(tar.FormatGNU), at(5, 0)), file("back\\slash", "3"), file(" ", "4"), file("...", "5"), file("ü", "6"), file("u\u0308", "7"), file("tab\t\"", "8"),
			file("wh.x", "9"), file(".whx", "10"), file("a.wh.x", "11"),
		}}},
		{name: "slash after a file's name", layers: [][]member{{raw(ustar('0', "file/", "", 3)), raw(padded("abc")), raw(ustar(0, "dir/", "", 0)), raw(ustar('5', "dir2", "", 0)), raw(ustar(0, "old", "", 2)), raw(padded("ab")), raw(ustar('2', "link/", "old", 0))}}},
		{name: "many names", layers: [][]member{manyNames()}},
	}
}

func manyNames() []member {
	var all []member
	for i := range 700 {
		d := fmt.Sprintf("d%d", i%7)
		if i < 7 {
			all = append(all, dir(d))
		}
		all = append(all, file(fmt.Sprintf("%s/%s-%d", d, strings.Repeat("x", i%150), i), fmt.Sprint(i%50)))
	}
	return all
}
