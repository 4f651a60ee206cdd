package chunkfmt

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// find returns the inode of a path.
func find(tb testing.TB, x *Index, name string) *Inode {
	tb.Helper()
	i, err := x.Lookup(name)
	if err != nil {
		tb.Fatal(err)
	}
	return &x.Inodes[i]
}

// entry returns the entry of a name.
func entry(tb testing.TB, x *Index, name string) *Entry {
	tb.Helper()
	i := slices.IndexFunc(x.Entries, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		tb.Fatal("no entry", name)
	}
	return &x.Entries[i]
}

func attrOf(tb testing.TB, x *Index, name string) *Attr {
	tb.Helper()
	return &x.Attrs[find(tb, x, name).Attr]
}

// breakage breaks a golden index.
type breakage struct {
	golden string
	do     func(tb testing.TB, x *Index)
	want   string // in the error
}

var breakages = map[string]breakage{
	"no root":                {"empty", func(_ testing.TB, x *Index) { x.Inodes = nil }, "no root"},
	"root is a file":         {"empty", func(_ testing.TB, x *Index) { x.Attrs[0] = Attr{Kind: File} }, "root"},
	"no empty xattr set":     {"empty", func(_ testing.TB, x *Index) { x.Xattrs = nil }, "empty set"},
	"implied with owner":     {"empty", func(_ testing.TB, x *Index) { x.Attrs[0].UID = 1 }, "implied"},
	"implied with time":      {"empty", func(_ testing.TB, x *Index) { x.Inodes[0].Mtime = 1 }, "implied"},
	"opaque and replaced":    {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "a").Flags |= Replaced }, "both"},
	"unknown flag":           {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "a").Flags |= 8 }, "unknown flags"},
	"flag of a file":         {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "a/empty").Flags = Opaque }, "no directory"},
	"unknown kind":           {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "dev/fifo").Kind = kinds }, "unknown kind"},
	"mode":                   {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "a").Mode = 0o10000 }, "mode"},
	"xattr set out of range": {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "a").Xattrs = 99 }, "xattr set 99"},
	"xattr set too early":    {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "a").Xattrs = 2 }, "before"},
	"xattr set unused":       {"kinds", func(_ testing.TB, x *Index) { x.Xattrs = append(x.Xattrs, []Xattr{{"user.z", ""}}) }, "not used"},
	"xattr set twice":        {"kinds", func(_ testing.TB, x *Index) { x.Xattrs[2] = x.Xattrs[1] }, "twice"},
	"xattr set empty":        {"kinds", func(_ testing.TB, x *Index) { x.Xattrs[1] = nil }, "empty"},
	"xattrs unsorted":        {"kinds", func(_ testing.TB, x *Index) { slices.Reverse(sortedSet(x)) }, "after"},
	"xattr twice":            {"kinds", func(_ testing.TB, x *Index) { s := sortedSet(x); s[0] = s[1] }, "after"},
	"xattr name empty":       {"kinds", func(_ testing.TB, x *Index) { sortedSet(x)[0].Name = "" }, "name"},
	"xattr name NUL":         {"kinds", func(_ testing.TB, x *Index) { sortedSet(x)[0].Name = "\x00" }, "name"},
	"xattr name long":        {"kinds", func(_ testing.TB, x *Index) { sortedSet(x)[0].Name = strings.Repeat("a", 256) }, "name"},
	"xattr value long":       {"kinds", func(_ testing.TB, x *Index) { sortedSet(x)[0].Value = strings.Repeat("a", MaxXattrValue+1) }, "65536"},
	"attributes twice":       {"kinds", func(_ testing.TB, x *Index) { x.Attrs = append(x.Attrs, x.Attrs[1]) }, "twice"},
	"attributes unused":      {"kinds", func(_ testing.TB, x *Index) { x.Attrs = append(x.Attrs, Attr{UID: 12345}) }, "not used"},
	"attributes out of range": {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a").Attr = 99 },
		"99"},
	"attributes too early": {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/empty").Attr += 5 }, "/a/empty: "},
	"whiteout with time":   {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "gone").Nsec = 1 }, "/gone: "},
	"whiteout with mode":   {"kinds", func(tb testing.TB, x *Index) { attrOf(tb, x, "gone").Mode = 1 }, "whiteout"},
	"nanoseconds":          {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a").Nsec = 1e9 }, "/a: "},
	"link count":           {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/link").Nlink = 1 }, "/a/link: "},
	"link count of root":   {"kinds", func(_ testing.TB, x *Index) { x.Inodes[0].Nlink++ }, "link count"},
	"parent":               {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev/null").Parent = 0 }, "parent"},
	"parent of root":       {"kinds", func(_ testing.TB, x *Index) { x.Inodes[0].Parent = 1 }, "root"},
	"second name of a directory": {"kinds", func(tb testing.TB, x *Index) {
		entry(tb, x, "file").Inode = 1
	}, "second name"},
	"loop":             {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "a").Inode = 0 }, "inode 0"},
	"inode skipped":    {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "a").Inode = 2 }, "inode 2"},
	"first of a dir":   {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev").First++ }, "entries"},
	"children missing": {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev").Count-- }, ""},
	"too many children": {"kinds", func(tb testing.TB, x *Index) {
		find(tb, x, "implied/parent").Count++
	}, "entries"},
	"entry without dir":  {"kinds", func(_ testing.TB, x *Index) { x.Entries = append(x.Entries, Entry{"z", 1}) }, "entries"},
	"inode without name": {"kinds", func(_ testing.TB, x *Index) { x.Inodes = append(x.Inodes, x.Inodes[1]) }, ""},
	"name empty":         {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = "" }, "/dev: "},
	"name with slash":    {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = "f/" }, "/dev: "},
	"name with NUL":      {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = "f\x00" }, "/dev: "},
	"name dot":           {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = "." }, "/dev: "},
	"name dot dot":       {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = ".." }, "/dev: "},
	"name too long":      {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "socket").Name = strings.Repeat("s", 256) }, "/dev: "},
	"names unsorted":     {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = "zero" }, "/dev: "},
	"name twice":         {"kinds", func(tb testing.TB, x *Index) { entry(tb, x, "fifo").Name = "null" }, "/dev: "},
	"size of a dir":      {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev").Size = 1 }, "/dev: "},
	"size of a symlink":  {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/symlink").Size = 1 }, "/a/symlink: "},
	"content of a fifo":  {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev/fifo").Count = 1 }, "/dev/fifo: "},
	"device major":       {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev/null").Size = 4096 << 32 }, "/dev/null: "},
	"device minor":       {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev/null").Size = 1 << 20 }, "/dev/null: "},
	"device negative":    {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "dev/null").Size = -1 }, "/dev/null: "},
	"target missing":     {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/symlink").First = 9 }, "/a/symlink: "},
	"target empty":       {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = "" }, "target 0"},
	"target too long":    {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = strings.Repeat("t", MaxPath+1) }, "target 0"},
	"target with NUL":    {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = "\x00" }, "target 0"},
	"target twice":       {"kinds", func(_ testing.TB, x *Index) { x.Targets[1] = x.Targets[2] }, "twice"},
	"target unused":      {"kinds", func(_ testing.TB, x *Index) { x.Targets = append(x.Targets, "x") }, "not used"},
	"hard link absolute": {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = "/lower" }, "/below: "},
	"hard link upwards":  {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = "../lower" }, "/below: "},
	"hard link unclean":  {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = "a//b" }, "/below: "},
	"hard link to root":  {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = "." }, "/below: "},
	"hard link name":     {"kinds", func(_ testing.TB, x *Index) { x.Targets[0] = strings.Repeat("t", 256) }, "/below: "},
	"inline too short":   {"kinds", func(_ testing.TB, x *Index) { x.Inline = x.Inline[1:] }, "/a/more: "},
	"inline unused":      {"kinds", func(_ testing.TB, x *Index) { x.Inline = append(x.Inline, 0) }, "inline"},
	"inline elsewhere":   {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/more").First++ }, "/a/more: "},
	"empty with place":   {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/empty").First = 1 }, "/a/empty: "},
	"size negative":      {"kinds", func(tb testing.TB, x *Index) { find(tb, x, "a/empty").Size = -1 }, "/a/empty: "},

	"size of a file":       {"packed", func(tb testing.TB, x *Index) { find(tb, x, "a").Size++ }, "/a: "},
	"run empty":            {"packed", func(_ testing.TB, x *Index) { x.Runs[0].Count = 0 }, "/a: "},
	"run too long":         {"packed", func(_ testing.TB, x *Index) { x.Runs[0].Count = 100 }, "/a: "},
	"run out of range":     {"packed", func(_ testing.TB, x *Index) { x.Runs[0].Chunk = 100 }, "/a: "},
	"run of one repeated":  {"packed", func(_ testing.TB, x *Index) { x.Runs[1].Repeat = true }, "/b: "},
	"run endless":          {"packed", func(tb testing.TB, x *Index) { x.Runs[3].Count = 1<<32 - 1 }, "/repeat: "},
	"runs that join":       {"packed", func(tb testing.TB, x *Index) { splitRun(tb, x, "a") }, "/a: "},
	"repeats that join":    {"packed", func(tb testing.TB, x *Index) { splitRepeat(tb, x) }, "/repeat: "},
	"runs elsewhere":       {"packed", func(tb testing.TB, x *Index) { find(tb, x, "b").First = 0 }, "/b: "},
	"run unused":           {"packed", func(_ testing.TB, x *Index) { x.Runs = append(x.Runs, Run{Count: 1}) }, "runs"},
	"too many runs":        {"packed", func(tb testing.TB, x *Index) { find(tb, x, "z").Count++ }, "/z: "},
	"chunk unused":         {"packed", func(tb testing.TB, x *Index) { appendChunk(x) }, "not used"},
	"chunks unsorted":      {"packed", func(_ testing.TB, x *Index) { x.Chunks[2], x.Chunks[3] = x.Chunks[3], x.Chunks[2] }, "order"},
	"hole after chunks":    {"packed", func(_ testing.TB, x *Index) { c := x.Chunks; x.Chunks = append(slices.Clone(c[1:]), c[0]) }, "order"},
	"holes unsorted":       {"packed", func(_ testing.TB, x *Index) { x.Chunks[0], x.Chunks[1] = x.Chunks[1], x.Chunks[0] }, "order"},
	"chunk empty":          {"packed", func(_ testing.TB, x *Index) { x.Chunks[2].Length = 0 }, "0 bytes"},
	"chunk overlaps":       {"packed", func(_ testing.TB, x *Index) { x.Chunks[2].Length++ }, "overlaps"},
	"chunk beyond group":   {"packed", func(_ testing.TB, x *Index) { x.Chunks[4].Length++ }, "4098 bytes"},
	"chunk unaligned":      {"packed", func(_ testing.TB, x *Index) { x.Chunks[4].Offset-- }, "multiple"},
	"chunk of no group":    {"packed", func(_ testing.TB, x *Index) { x.Chunks[5].Group = 3 }, "group 3"},
	"chunk of no blob":     {"packed", func(_ testing.TB, x *Index) { x.Chunks[6].Blob = 2 }, "blob 2"},
	"chunk without digest": {"packed", func(_ testing.TB, x *Index) { x.Chunks[6].Digest = Digest{} }, "digest"},
	"hole with digest":     {"packed", func(_ testing.TB, x *Index) { x.Chunks[0].Digest[0]++ }, "hole"},
	"hole with offset":     {"packed", func(_ testing.TB, x *Index) { x.Chunks[0].Offset = 1 }, "hole"},
	"hole too long":        {"packed", func(_ testing.TB, x *Index) { x.Chunks[1].Length = MaxGroupPlain + 1 }, "bytes"},
	"blob twice":           {"packed", func(_ testing.TB, x *Index) { x.Blobs[1].Digest = x.Blobs[0].Digest }, "digest"},
	"blob without digest":  {"packed", func(_ testing.TB, x *Index) { x.Blobs[1].Digest = Digest{} }, "digest"},
	"blob endless":         {"external", func(_ testing.TB, x *Index) { x.Blobs[0].Size = 1<<62 + 1 }, "size"},
	"blob empty":           {"packed", func(_ testing.TB, x *Index) { x.Blobs[1].Size = 0; x.Blobs[1].Groups = nil }, "size"},
	"blob size":            {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Size++ }, "9001"},
	"group offset":         {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Offset++ }, "group 1"},
	"group stored":         {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Stored = MaxGroupStored + 1 }, "group 2"},
	"group plain":          {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Plain = MaxGroupPlain + 1 }, "group 2"},
	"group empty":          {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Plain = 0 }, "group 2"},
	"group codec":          {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Codec = codecs }, "codec"},
	"group not compressed": {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Plain++ }, "group 1"},
	"group digest missing": {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Digest = Digest{} }, "group 1"},
	"group digest unproven": {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Digest[0] = 1 },
		"group 1"},
	"device unaligned":  {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Device++ }, "group 2"},
	"device overlaps":   {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Device = 24576 }, "group 2"},
	"device too small":  {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].DeviceSize -= 4096 }, "device"},
	"device size":       {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].DeviceSize++ }, "device"},
	"device endless":    {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].DeviceSize = MaxFileSize + 4096 }, "device"},
	"device below zero": {"packed", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[0].Device = -4096 }, "group 0"},
	"device beside":     {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[0].Device = 4096 }, "beside"},
	"filler with bytes": {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Plain = 1 }, "filler"},
	"filler in device":  {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[2].Device = 4096 }, "filler"},
	"filler with segments": {"inplace", func(_ testing.TB, x *Index) {
		x.Blobs[0].Groups[2].Segments = []Segment{}
	}, "filler"},
	"chunk in filler":     {"inplace", func(_ testing.TB, x *Index) { x.Chunks[5].Group, x.Chunks[6].Group = 2, 2 }, "group 2"},
	"chunk in no segment": {"inplace", func(_ testing.TB, x *Index) { x.Chunks[5].Group, x.Chunks[6].Group = 4, 4 }, "group 4"},
	"chunk beside segment": {"inplace", func(_ testing.TB, x *Index) { x.Chunks[1].Offset-- },
		"segment"},
	"chunk beyond segment": {"inplace", func(_ testing.TB, x *Index) { x.Chunks[1].Length++ }, "segment"},
	"segment empty":        {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Segments[1].Length = 0 }, "segment 1"},
	"segment beyond group": {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Segments[1].Length = 513 }, "segment 1"},
	"segments overlap":     {"inplace", func(_ testing.TB, x *Index) { x.Blobs[0].Groups[1].Segments[1].Offset = 999 }, "segment 1"},
	"segments in one place": {"inplace", func(_ testing.TB, x *Index) {
		x.Blobs[0].Groups[1].Segments[1].Device = 8192
	}, "segment 1"},
	"file in two pages": {"inplace", func(_ testing.TB, x *Index) {
		x.Blobs[0].Groups[1].Segments[0].Device++
	}, "/b: "},
	"file after a hole in two pages": {"inplace", func(_ testing.TB, x *Index) {
		x.Blobs[0].Groups[3].Segments[0].Device += 4096
		x.Blobs[0].DeviceSize += 4096
	}, "/c: "},
	"hole over other content": {"inplace", func(_ testing.TB, x *Index) {
		g := &x.Blobs[0].Groups[1]
		g.Segments = append(g.Segments, Segment{Offset: 1700, Length: 9, Device: 12288 + 1500})
	}, "/c: "},
	"other content before data": {"inplace", func(tb testing.TB, x *Index) {
		// The file begins with the hole.
		find(tb, x, "c").Size -= 100
		find(tb, x, "c").Count--
		x.Runs = slices.Delete(x.Runs, 2, 3)
		x.Chunks = slices.Delete(x.Chunks, 4, 5)
		for i := range x.Runs {
			if x.Runs[i].Chunk > 3 {
				x.Runs[i].Chunk--
			}
		}
		g := &x.Blobs[0].Groups[3]
		g.Segments[0].Device -= 100
	}, "/c: "},
	"file unaligned": {"inplace", func(_ testing.TB, x *Index) {
		x.Blobs[0].Groups[0].Segments[0].Device++
	}, "/a: "},
	"external with groups": {"external", func(_ testing.TB, x *Index) { x.Blobs[0].Groups = make([]Group, 1) }, "external"},
	"external chunk":       {"external", func(_ testing.TB, x *Index) { x.Chunks[3].Length = MaxGroupPlain + 1 }, "bytes"},
}

func sortedSet(x *Index) []Xattr {
	return x.Xattrs[slices.IndexFunc(x.Xattrs, func(s []Xattr) bool { return len(s) == 2 })]
}

func appendChunk(x *Index) {
	x.Blobs[1].Groups[0].Plain += 8192
	x.Blobs[1].DeviceSize += 8192
	x.Chunks = append(x.Chunks, Chunk{Blob: 1, Offset: 8192, Length: 1, Digest: sum("x")})
}

// splitRun makes two runs of the first one of a file.
func splitRun(tb testing.TB, x *Index, name string) {
	n := find(tb, x, name)
	r := &x.Runs[n.First]
	r.Count--
	x.Runs = slices.Insert(x.Runs, int(n.First)+1, Run{Chunk: r.Chunk + r.Count, Count: 1})
	n.Count++
	for i := range x.Inodes {
		if m := &x.Inodes[i]; x.Kind(uint32(i)) == File && m != n && m.First > n.First {
			m.First++
		}
	}
}

func splitRepeat(tb testing.TB, x *Index) {
	n := find(tb, x, "repeat")
	splitRun(tb, x, "repeat")
	x.Runs[n.First+1].Chunk = x.Runs[n.First].Chunk
}

func TestValidateRefuses(t *testing.T) {
	for name, tt := range breakages {
		t.Run(name, func(t *testing.T) {
			x := goldenIndexes(t)[tt.golden]
			if err := x.Validate(); err != nil {
				t.Fatal(err)
			}
			tt.do(t, x)
			err := x.Validate()
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if _, err := Encode(x); !errors.Is(err, ErrInvalid) {
				t.Errorf("Encode: %v", err)
			}
		})
	}
}

// TestDecodeRefusesInvalid encodes what Validate refuses, as far as that can be
// expressed, under a correct checksum.
func TestDecodeRefusesInvalid(t *testing.T) {
	for name, tt := range breakages {
		t.Run(name, func(t *testing.T) {
			x := goldenIndexes(t)[tt.golden]
			before := bodyOf(t, mustEncode(t, x))
			tt.do(t, x)
			body := encodeAnyway(x)
			if body == nil || bytes.Equal(body, before) {
				return // it is derived
			}
			if _, err := Decode(sealBody(t, Header{Major: Major, Body: int64(len(body))}, body), Limits{}); err == nil {
				// The change may have made another index, but a valid one.
				checkBody(t, body)
			} else if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// encodeAnyway returns nil where the encoder relies on what Validate checks.
func encodeAnyway(x *Index) (body []byte) {
	defer func() {
		if recover() != nil {
			body = nil
		}
	}()
	n := countsOf(&x.Tree)
	return encodeBody(&x.Tree, &n)
}

func TestValidateBoundsPaths(t *testing.T) {
	deep := func(levels int, last string) *Index {
		d := NewDraft()
		name := strings.Repeat("n/", levels) + last
		return frozen(t, d, nil, nil, d.Put(name, &Node{Kind: File}))
	}
	x := deep(2047, "x") // 4095 bytes
	if err := x.Validate(); err != nil {
		t.Error(err)
	}
	x.Entries[len(x.Entries)-1].Name = "xx"
	if err := x.Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("a path of 4096 bytes: %v", err)
	}
	if _, err := Decode(mustEncode(t, deep(2047, "x")), Limits{}); err != nil {
		t.Error(err)
	}
}

func TestValidateMerged(t *testing.T) {
	for name, x := range goldenIndexes(t) {
		if err := x.ValidateMerged(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: a tree of one layer: %v", name, err)
		}
	}
	merged := map[string]func(x *Index){
		"as it is":        func(*Index) {},
		"unused tables":   func(x *Index) { x.Attrs = append(x.Attrs, x.Attrs[0]) },
		"unused chunk":    appendChunk,
		"order of tables": func(x *Index) { x.Targets = []string{"x", "x"} },
	}
	for name, do := range merged {
		x := goldenPacked(t)
		x.Attrs[0].Flags = 0
		if do(x); x.ValidateMerged() != nil {
			t.Errorf("%s: %v", name, x.ValidateMerged())
		}
	}
	x := goldenExternal(t)
	x.Attrs[0].Flags = 0
	if err := x.ValidateMerged(); !errors.Is(err, ErrInvalid) {
		t.Errorf("external: %v", err)
	}
}
