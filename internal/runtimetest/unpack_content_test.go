package runtimetest

import (
	"archive/tar"
	"bytes"
	"strings"
)

// capability is security.capability in version 2: cap_net_bind_service, and
// effective.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is a POSIX ACL: rwx for the owner, r-x for the group, user 77 and the
// mask, nothing for others.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" +
	"\x02\x00\x05\x00\x4d\x00\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x05\x00\xff\xff\xff\xff" +
	"\x20\x00\x00\x00\xff\xff\xff\xff"

func metaCases() []unpackCase {
	return []unpackCase{
		{name: "set-id and sticky", layers: [][]member{{
			file("suid", "1", mode(0o4755)), file("sgid", "2", mode(0o2711)), file("both", "3", mode(0o6111)), dir("sticky", mode(0o1777)), dir("sgdir", mode(0o2775)), file("none", "4", mode(0)),
			file("type bits", "5", mode(0o100644)), dir("more type bits", mode(0o40755)), hard("linked", "suid"), file("sticky file", "", mode(0o1644)),
		}, {dir("sgdir/sub"), file("sgdir/f", "", mode(0o2755)), file("sticky/f", "", mode(0o7777))}}},
		{name: "owners", layers: [][]member{{
			file("65535", "", owner(65535, 65535)), file("65536", "", owner(65536, 65537)), file("octal", "", owner(1<<21, 1<<21+1)), file("binary", "", owner(1<<31, 1<<31+5), form(tar.FormatGNU), at(9, 0)),
			dir("dir", owner(4294967294, 4294967293)), symlink("link", "x", owner(100000, 100001)), special(tar.TypeFifo, "pipe", 0, 0, owner(70000, 70000)), file("root", "", owner(0, 0)),
		}}},
		{name: "times", layers: [][]member{{
			file("epoch", "", at(0, 0)), file("ns", "", at(1, 1)), file("last ns", "", at(1_700_000_000, 999_999_999)), file("before 1970", "", at(-1, 0)), file("before with ns", "", at(-1_000_000, 5)),
			file("2038", "", at(1<<31, 7)), file("2106", "", at(1<<32+1, 8)), file("2262", "", at(9_223_372_036, 854_775_807)), file("after", "", at(9_223_372_036, 854_775_808)), file("3000", "", at(32_503_680_000, 0)),
			dir("dir before", at(-5, 5)), dir("dir late", at(1<<33, 3)), symlink("link", "x", at(1<<32, 999)), file("digits", "", pax("comment", "x"), at(4, 120_000_000)),
		}}},
		{name: "access times are no times", layers: [][]member{{file("f", "", func(m *member) {
			m.header.AccessTime = m.header.ModTime.AddDate(2000, 0, 0)
			m.header.ModTime = m.header.AccessTime.AddDate(-1990, 0, 0)
		})}}},
		{name: "xattrs", overlay: overlayXattrs, layers: [][]member{
			{file("user", "1", xattr("user.a", "1"), xattr("user.empty", ""), xattr("user.bytes", "\x01\xff\x00\n=")), file("cap", "2", xattr("security.capability", capability)),
				file("big", "3", xattr("user.big", strings.Repeat("v", 3000))), dir("dir", xattr("user.d", "1")), file("selinux", "", xattr("security.selinux", "system_u:object_r:etc_t:s0\x00")),
				file("long", "", xattr("user."+strings.Repeat("n", 250), "1")), file("many", "", manyXattrs()), file("same", "1", xattr("user.a", "1"), xattr("user.empty", ""), xattr("user.bytes", "\x01\xff\x00\n="))},
			{dir("dir", xattr("user.e", "2"), xattr("user.d", "3")), file("user", "4"), file("cap", "5", xattr("security.capability", capability), mode(0o4755))},
		}},
		{name: "ACLs", layers: [][]member{{
			file("f", "1", xattr("system.posix_acl_access", acl), mode(0o750)), dir("d", xattr("system.posix_acl_access", acl), xattr("system.posix_acl_default", acl), mode(0o750)),
		}}},
		// What is made in these directories inherits from them, whatever the tar
		// says; a later layer that lists the directory would see no difference.
		{name: "directories that pass something on", unlike: map[string][]field{"sgid/made": {fOwner}, "acl/f": {fXattrs}}, layers: [][]member{{
			dir("sgid", mode(0o2775), owner(5, 6)), file("sgid/made/f", "1"), dir("acl", xattr("system.posix_acl_default", acl)), file("acl/f", ""),
		}}},
		{name: "ACL that is a mode", layers: [][]member{{file("f", "1", xattr("system.posix_acl_access", acl[:12]+acl[20:28]+acl[36:]), mode(0o604))}}},
		{name: "xattrs that are not kept", layers: [][]member{{
			file("trusted", "1", xattr("trusted.overlay.opaque", "y"), xattr("trusted.x", "1"), xattr("user.kept", "1")), dir("trusted dir", xattr("trusted.overlay.redirect", "/etc"), xattr("trusted.overlay.opaque", "y")),
			symlink("link", "x", xattr("user.a", "1")), special(tar.TypeFifo, "pipe", 0, 0, xattr("user.a", "1")), special(tar.TypeChar, "char", 1, 3, xattr("user.a", "1"), xattr("security.selinux", "x")),
			file("unknown", "", xattr("no.such", "1"), xattr("plain", "1"), xattr("system.nothing", "1")),
			file("foreign", "", pax("LIBARCHIVE.xattr.user.a", "MQ"), pax("SCHILY.acl.access", "user::rwx"), pax("RHT.security.selinux", "x")),
			symlink("acl link", "x", xattr("system.posix_acl_access", acl)),
		}}},
		{name: "pax records", layers: [][]member{{
			file("short", "1", named("the/real/name"), pax("VENDOR.x", "y")), file("comment", "2", pax("comment", "hello")),
		}}},
		{name: "global pax header", layers: [][]member{{
			raw(ustar('g', "pax_global_header", "", 32)), raw(padded("13 path=nope\n11 mtime=5\n8 uid=7\n")), file("f", "1"), dir("d"),
		}}},
	}
}

func manyXattrs() change {
	return func(m *member) {
		for c := 'a'; c <= 'z'; c++ {
			xattr("user."+strings.Repeat(string(c), 20), strings.Repeat(string(c), int(c-'a')))(m)
		}
	}
}

// sizes are lengths around those of blocks and of the chunks and groups that
// the tests build with.
var sizes = []int{0, 1, 100, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 16383, 16384, 16385, 65535, 65536, 65537, 262143, 262144, 262145, 1 << 20, 1<<20 + 1, 1<<20 - 1}

func contentCases() []unpackCase {
	var sized, zeros, mixed, repeats []member
	for i, n := range sizes {
		name := strings.Repeat("s", i+1)
		sized = append(sized, file("random/"+name, string(random(n, uint64(i)))))
		zeros = append(zeros, file("zeros/"+name, string(make([]byte, n))))
		repeats = append(repeats, file("repeats/"+name, strings.Repeat("0123456789abcdef", n/16)+strings.Repeat("x", n%16)))
		b := random(n, 99)
		for at := 4096; at < n; at += 3 * 4096 {
			clear(b[at:min(at+4096, n)])
		}
		mixed = append(mixed, file("mixed/"+name, string(b)))
	}
	tail := append(random(5000, 3), make([]byte, 300_000)...)
	return []unpackCase{
		{name: "sizes", layers: [][]member{sized}},
		{name: "zeros", layers: [][]member{zeros, mixed}},
		{name: "zeros at either end", layers: [][]member{{file("tail", string(tail)), file("head", string(append(make([]byte, 300_000), tail[:5000]...))), file("both", string(append(make([]byte, 70_000), tail...)))}}},
		{name: "repeats", layers: [][]member{repeats, append([]member{file("again", repeats[10].data)}, repeats...)}},
		{name: "equal contents in all layers", layers: [][]member{
			append([]member{dir("a")}, sized...), {file("b/one", sized[12].data), file("b/two", sized[23].data), file("b/three", "tiny")}, append(append([]member{}, sized[20:]...), file("b/two", sized[22].data), file("tiny", "tiny")),
		}},
		{name: "file that becomes longer and shorter", layers: [][]member{{file("f", sized[15].data), file("g", "x")}, {file("f", "x"), file("g", sized[15].data)}, {file("f", ""), file("g", "")}}},
	}
}

func formatCases() []unpackCase {
	one := []member{file("f", "content"), dir("d")}
	garbage := append(make([]byte, 1024), random(3000, 5)...)
	return []unpackCase{
		{name: "tar without end", layers: [][]member{one}, tail: []byte{}},
		{name: "tar with one zero block", layers: [][]member{one}, tail: make([]byte, 512)},
		{name: "tar with many zero blocks", layers: [][]member{one}, tail: make([]byte, 100<<10)},
		{name: "tar with garbage after its end", layers: [][]member{one}, tail: garbage},
		{name: "two tars in one", layers: [][]member{one}, tail: bytes.Join([][]byte{make([]byte, 1024), ustar('0', "second", "", 0), make([]byte, 1024)}, nil)},
		{name: "empty layer blob", layers: [][]member{one, {}}, tail: []byte{}},
		{name: "hard link with a size", layers: [][]member{{raw(ustar('0', "f", "", 3)), raw(padded("abc")), raw(ustar('1', "g", "f", 3)), raw(ustar('0', "h", "", 1)), raw(padded("x"))}}},
		{name: "directory with a size", layers: [][]member{{raw(ustar('5', "d", "", 3)), raw(ustar('0', "d/h", "", 1)), raw(padded("x"))}}},
	}
}

func refusedCases() []unpackCase {
	lower := []member{file("f", "1"), dir("d"), file("d/x", "2"), symlink("s", "d")}
	return []unpackCase{
		{name: "link to nowhere", refused: "no target", names: []string{"l", "nowhere"}, layers: [][]member{lower, {hard("l", "nowhere")}}},
		{name: "link to nowhere in the lowest layer", refused: "no target", names: []string{"l", "later"}, layers: [][]member{{hard("l", "later"), file("later", "")}}},
		{name: "link to a directory", refused: "a directory", names: []string{"l"}, layers: [][]member{{dir("a"), hard("l", "a")}}},
		{name: "link to a lower directory", refused: "a directory", names: []string{"l"}, layers: [][]member{lower, {hard("l", "d")}}},
		{name: "link to the root", refused: "a directory", names: []string{"l"}, layers: [][]member{lower, {hard("l", "/")}}},
		{name: "link to what the layer has removed", refused: "removed before", names: []string{"l"}, overlay: overlayDevices, layers: [][]member{lower, {whiteout("f"), hard("l", "f")}}},
		{name: "link into what the layer has removed", refused: "removed before", names: []string{"l"}, layers: [][]member{lower, {whiteout("d"), hard("l", "d/x")}}},
		{name: "link into what the layer has made opaque", refused: "removed before", names: []string{"l"}, layers: [][]member{lower, {opaque("d"), hard("l", "d/x")}}},
		{name: "link into what the layer has replaced", refused: "removed before", names: []string{"l"}, layers: [][]member{lower, {file("d", ""), hard("l", "d/x")}}},
		{name: "link into what the layer has replaced by a symlink", refused: "removed before", names: []string{"l"}, layers: [][]member{lower, {symlink("d", "nowhere"), hard("l", "d/x")}}},
		{name: "link to itself", refused: "removed before", names: []string{"l"}, layers: [][]member{lower, {file("l", "1"), hard("l", "l")}}},
		{name: "link to itself in the lower layer", refused: "removed before", names: []string{"f"}, layers: [][]member{lower, {hard("f", "f")}}},
		{name: "link over its own directory", refused: "removed before", names: []string{"d"}, layers: [][]member{lower, {hard("d", "d/x")}}},
		{name: "link through a symlink to itself", refused: "removed before", names: []string{"s/x"}, layers: [][]member{lower, {hard("s/x", "d/x")}}},
		{name: "file as a parent", refused: "no directory", names: []string{"f"}, layers: [][]member{{file("f", "1"), file("f/x", "2")}}},
		{name: "lower file as a parent", refused: "no directory", names: []string{"f"}, overlay: "the file is replaced", layers: [][]member{lower, {file("f/x", "2")}}},
		{name: "lower file as the parent of a whiteout", refused: "no directory", names: []string{"f"}, overlay: "the file is replaced", layers: [][]member{lower, {whiteout("f/x")}}},
		{name: "symlink to a file as a parent", refused: "no directory", names: []string{"t"}, layers: [][]member{{file("f", "1"), symlink("t", "f"), file("t/x", "2")}}},
		{name: "loop of symlinks", refused: "too many links", names: []string{"a"}, layers: [][]member{{symlink("a", "b"), symlink("b", "a"), file("a/x", "1")}}},
		{name: "loop of symlinks in a lower layer", refused: "too many links", names: []string{"a"}, layers: [][]member{{symlink("a", "b"), symlink("b", "a")}, {file("a/x", "1")}}},
		{name: "name of 256 bytes", refused: "too long", layers: [][]member{{file(strings.Repeat("n", 256), "1")}}},
		{name: "path of 4200 bytes", refused: "too long", layers: [][]member{{file(strings.Repeat("dir/", 1050)+"f", "1")}}},
		{name: "whiteout of no name", refused: "whiteout", names: []string{".wh."}, layers: [][]member{{dir("d"), file("d/.wh.", "")}}},
		{name: "whiteout of the directory", refused: "whiteout", names: []string{".wh."}, layers: [][]member{{dir("d"), file("d/.wh..", "")}}},
		{name: "whiteout of the parent", refused: "whiteout", names: []string{".wh."}, layers: [][]member{{dir("d"), file("d/.wh...", "")}}},
		{name: "symlink to no name", refused: "empty target", names: []string{"s"}, layers: [][]member{{raw(ustar('2', "s", "", 0))}}},
		{name: "symlink of 4096 bytes", refused: "too long", layers: [][]member{{symlink("s", strings.Repeat("t", 4096))}}},
		{name: "unknown type", refused: "unhandled type", names: []string{"odd"}, layers: [][]member{{raw(ustar('Q', "odd", "", 0))}}},
		{name: "contiguous file", refused: "unhandled type", names: []string{"odd"}, layers: [][]member{{raw(ustar('7', "odd", "", 0))}}},
		{name: "truncated header", refused: "unexpected end", layers: [][]member{{file("f", "1")}}, tail: ustar('0', "g", "", 0)[:300]},
		{name: "truncated file", refused: "unexpected end", layers: [][]member{{file("f", "1")}}, tail: append(ustar('0', "g", "", 5000), make([]byte, 512)...)},
		{name: "end in a zero block", refused: "unexpected end", layers: [][]member{{file("f", "1")}}, tail: make([]byte, 700)},
		{name: "bad checksum", refused: "bad header", layers: [][]member{{file("f", "1")}}, tail: append([]byte("x"), ustar('0', "g", "", 0)[1:]...)},
		{name: "no tar", refused: "bad header", layers: [][]member{{}}, tail: random(2000, 9)},
		{name: "bad capability", refused: "bad attribute", names: []string{"f"}, layers: [][]member{{file("f", "", xattr("security.capability", "x"))}}},
		{name: "bad ACL", refused: "bad attribute", names: []string{"f"}, layers: [][]member{{file("f", "", xattr("system.posix_acl_access", "x"))}}},
		{name: "attribute name of 256 bytes", refused: "too long", layers: [][]member{{file("f", "", xattr("user."+strings.Repeat("n", 251), "1"))}}},
		{name: "attribute of 65537 bytes", refused: "too long", layers: [][]member{{file("f", "", xattr("user.a", strings.Repeat("n", 65537)))}}},
	}
}
