package estargz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
)

// at is where the tables of these tests claim to be.
var at = place{codec: chunkfmt.Gzip, offset: 1 << 20, length: 100, dataEnd: 1 << 20}

const size = 1<<20 + 1000

func buildText(text string) (*chunkfmt.Index, error) {
	return build(context.Background(), []byte(text), at, size, Options{Digest: chunkfmt.Sum([]byte("layer"))})
}

func table(entries ...string) string {
	return `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
}

var someDigest = chunkfmt.Sum([]byte("content")).String()

func reg(name string, size, offset int, more string) string {
	return fmt.Sprintf(`{"name":%q,"type":"reg","size":%d,"offset":%d,"chunkDigest":%q%s}`, name, size, offset, someDigest, more)
}

func chunk(chunkOffset, chunkSize, offset int) string {
	return fmt.Sprintf(`{"type":"chunk","chunkOffset":%d,"chunkSize":%d,"offset":%d,"chunkDigest":%q}`, chunkOffset, chunkSize, offset, someDigest)
}

// lateContext ends when it has been asked a few times.
type lateContext struct {
	context.Context
	left int
}

func (c *lateContext) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestLongTablesEndWithContext(t *testing.T) {
	entries := make([]string, 10*entriesPerCheck)
	for i := range entries {
		entries[i] = fmt.Sprintf(`{"name":"%d","type":"dir"}`, i)
	}
	ctx := &lateContext{t.Context(), 3}
	_, err := build(ctx, []byte(table(entries...)), at, size, Options{Digest: chunkfmt.Sum([]byte("layer"))})
	if !errors.Is(err, context.Canceled) || errors.Is(err, chunkfmt.ErrInvalid) {
		t.Errorf("error %v with %d left", err, ctx.left)
	}
}

func TestGoodTables(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           table(),
		"one file":        table(reg("a", 5, 100, "")),
		"two in a member": table(reg("a", 5, 100, ""), reg("b", 5, 100, `,"innerOffset":1000`)),
		"chunks":          table(reg("a", 15, 100, `,"chunkSize":10`), chunk(10, 0, 200)),
		"ends":            table(reg("a", 5, 100, `,"endOffset":150`), reg("b", 5, 150, "")),
		"other keys":      `{"more":{"a":[1,2]},"entries":[],"version":1} `,
		"up the root":     table(reg("../../a", 5, 100, "")),
		"zero time":       table(reg("a", 5, 100, `,"modtime":"0001-01-01T00:00:00Z"`)),
		"link below":      table(`{"name":"a","type":"hardlink","linkName":"/of/a/lower/layer"}`),
		"whole zeros":     table(reg("a", 1<<30, 100, `,"chunkType":"zeros"`)),
		"no file":         table(`{"name":"/","type":"dir","mode":16877}`),
	} {
		x, err := buildText(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := x.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBadTables(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"nothing":            {``, chunkfmt.ErrInvalid},
		"no object":          {`[]`, chunkfmt.ErrInvalid},
		"cut":                {`{"version":1,"entries":[`, chunkfmt.ErrInvalid},
		"cut entry":          {`{"version":1,"entries":[{"name":"a"`, chunkfmt.ErrInvalid},
		"no version":         {`{"entries":[]}`, ErrUnsupported},
		"next version":       {`{"version":2,"entries":[]}`, ErrUnsupported},
		"entries twice":      {`{"version":1,"entries":[],"entries":[]}`, chunkfmt.ErrInvalid},
		"something behind":   {table() + "{}", chunkfmt.ErrInvalid},
		"entry is a number":  {table("7"), chunkfmt.ErrInvalid},
		"deep":               {table(strings.Repeat("[", 100_000)), chunkfmt.ErrInvalid},
		"type":               {table(`{"name":"a","type":"door"}`), chunkfmt.ErrInvalid},
		"size as text":       {table(`{"name":"a","type":"reg","size":"1"}`), chunkfmt.ErrInvalid},
		"huge number":        {table(`{"name":"a","type":"reg","size":1e30}`), chunkfmt.ErrInvalid},
		"negative size":      {table(reg("a", -1, 100, "")), chunkfmt.ErrInvalid},
		"negative offset":    {table(reg("a", 5, -100, "")), chunkfmt.ErrInvalid},
		"no offset":          {table(reg("a", 5, 0, "")), chunkfmt.ErrInvalid},
		"offset in table":    {table(reg("a", 5, 1<<20, "")), chunkfmt.ErrInvalid},
		"negative inner":     {table(reg("a", 5, 100, `,"innerOffset":-1`)), chunkfmt.ErrInvalid},
		"unsorted":           {table(reg("a", 5, 200, ""), reg("b", 5, 100, "")), chunkfmt.ErrInvalid},
		"same place":         {table(reg("a", 5, 100, ""), reg("b", 5, 100, "")), chunkfmt.ErrInvalid},
		"overlap":            {table(reg("a", 5, 100, ""), reg("b", 5, 100, `,"innerOffset":4`)), chunkfmt.ErrInvalid},
		"end before begin":   {table(reg("a", 5, 100, `,"endOffset":100`)), chunkfmt.ErrInvalid},
		"end after next":     {table(reg("a", 5, 100, `,"endOffset":150`), reg("b", 5, 149, "")), chunkfmt.ErrInvalid},
		"end in table":       {table(reg("a", 5, 100, fmt.Sprintf(`,"endOffset":%d`, 1<<20+1))), chunkfmt.ErrInvalid},
		"same name":          {table(reg("a", 5, 100, ""), reg("./a", 5, 200, "")), chunkfmt.ErrInvalid},
		"chunk alone":        {table(chunk(0, 1, 100)), chunkfmt.ErrInvalid},
		"chunk of nothing":   {table(reg("a", 0, 100, ""), chunk(0, 0, 100)), chunkfmt.ErrInvalid},
		"chunk beyond":       {table(reg("a", 5, 100, ""), chunk(5, 1, 200)), chunkfmt.ErrInvalid},
		"chunk too long":     {table(reg("a", 15, 100, `,"chunkSize":10`), chunk(10, 6, 200)), chunkfmt.ErrInvalid},
		"chunk missing":      {table(reg("a", 15, 100, `,"chunkSize":10`)), chunkfmt.ErrInvalid},
		"gap between chunks": {table(reg("a", 15, 100, `,"chunkSize":10`), chunk(11, 4, 200)), chunkfmt.ErrInvalid},
		"negative chunk":     {table(reg("a", 15, 100, `,"chunkSize":-10`)), chunkfmt.ErrInvalid},
		"first not at 0":     {table(reg("a", 5, 100, `,"chunkOffset":1`)), chunkfmt.ErrInvalid},
		"digest":             {table(`{"name":"a","type":"reg","size":5,"offset":100,"chunkDigest":"md5:1"}`), chunkfmt.ErrInvalid},
		"no digest":          {table(`{"name":"a","type":"reg","size":5,"offset":100}`), ErrUnsupported},
		"large chunk":        {table(reg("a", chunkfmt.MaxGroupPlain+1, 100, "")), ErrUnsupported},
		"far in a member":    {table(reg("a", 5, 100, fmt.Sprintf(`,"innerOffset":%d`, chunkfmt.MaxGroupPlain))), ErrUnsupported},
		"large file":         {table(reg("a", chunkfmt.MaxFileSize+1, 100, `,"chunkType":"zeros"`)), chunkfmt.ErrInvalid},
		"large files": {table(reg("a", chunkfmt.MaxFileSize/2, 100, `,"chunkType":"zeros"`),
			reg("b", chunkfmt.MaxFileSize/2+1, 200, `,"chunkType":"zeros"`)), ErrUnsupported},
		"many zeros":        {table(reg("a", chunkfmt.MaxFileSize, 100, `,"chunkType":"zeros"`)), ErrUnsupported},
		"negative owner":    {table(reg("a", 5, 100, `,"uid":-1`)), chunkfmt.ErrInvalid},
		"large owner":       {table(reg("a", 5, 100, `,"gid":4294967296`)), chunkfmt.ErrInvalid},
		"time":              {table(reg("a", 5, 100, `,"modtime":"yesterday"`)), chunkfmt.ErrInvalid},
		"device":            {table(`{"name":"a","type":"char","devMajor":-1}`), chunkfmt.ErrInvalid},
		"large device":      {table(`{"name":"a","type":"char","devMajor":1,"devMinor":1048576}`), chunkfmt.ErrInvalid},
		"link to nothing":   {table(`{"name":"a","type":"symlink"}`), chunkfmt.ErrInvalid},
		"link with NUL":     {table(`{"name":"a","type":"symlink","linkName":"a\u0000b"}`), chunkfmt.ErrInvalid},
		"hard link to root": {table(`{"name":"a","type":"hardlink","linkName":"."}`), chunkfmt.ErrInvalid},
		"name with NUL":     {table(`{"name":"a\u0000b","type":"dir"}`), chunkfmt.ErrInvalid},
		"long name":         {table(`{"name":"` + strings.Repeat("n", 256) + `","type":"dir"}`), chunkfmt.ErrInvalid},
		"root is a file":    {table(reg("/", 5, 100, "")), chunkfmt.ErrInvalid},
		"below a file":      {table(reg("a", 5, 100, ""), reg("a/b", 5, 200, "")), chunkfmt.ErrInvalid},
		"whiteout of ''":    {table(`{"name":"a/.wh.","type":"reg"}`), chunkfmt.ErrInvalid},
		"xattr name":        {table(reg("a", 5, 100, `,"xattrs":{"":"AA=="}`)), chunkfmt.ErrInvalid},
		"xattr value":       {table(reg("a", 5, 100, `,"xattrs":{"user.a":"?"}`)), chunkfmt.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := buildText(c.text); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

// TestManyLengthsOfZeros would take hours if each length were hashed alone.
func TestManyLengthsOfZeros(t *testing.T) {
	var entries []string
	for i := range 5_000 {
		entries = append(entries, reg(fmt.Sprint(i), maxHole-i, i+1, `,"chunkType":"zeros"`))
	}
	x, err := buildText(table(entries...))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c := &x.Chunks[i*2_000]
		if c.Digest != chunkfmt.Sum(make([]byte, c.Length)) {
			t.Errorf("wrong digest of %d zeros", c.Length)
		}
	}
}

func TestLongMembersAreCut(t *testing.T) {
	end := int64(3 * chunkfmt.MaxGroupStored)
	x, err := build(t.Context(), []byte(table(reg("a", 5, 100, ""))), place{codec: chunkfmt.Gzip, dataEnd: end}, end+10,
		Options{Digest: chunkfmt.Sum(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if g := x.Blobs[0].Groups; len(g) != 4 || g[1].Stored != chunkfmt.MaxGroupStored || g[1].Codec != chunkfmt.Gzip {
		t.Errorf("groups %+v", g)
	}
}

// FuzzTable gives any bytes as a table: the index must be valid, or none.
func FuzzTable(f *testing.F) {
	f.Add([]byte(table(reg("a", 15, 100, `,"chunkSize":10,"endOffset":300`), chunk(10, 5, 200),
		`{"name":"b/","type":"dir","mode":493,"xattrs":{"user.a":"AAAA"},"modtime":"2020-01-02T03:04:05.6Z"}`,
		`{"name":"b/.wh.c","type":"reg"}`, `{"name":"b/.wh..wh..opq","type":"reg"}`,
		`{"name":"d","type":"symlink","linkName":"b"}`, `{"name":"d/e","type":"hardlink","linkName":"a"}`,
		`{"name":"f","type":"char","devMajor":1,"devMinor":3}`)))
	f.Add([]byte(table(reg("a", 5, 100, ""), reg("b", 5, 100, `,"innerOffset":1000`))))
	f.Add([]byte(table(reg("a", 1<<30, 100, `,"chunkType":"zeros"`))))
	f.Add([]byte(table(reg(".prefetch.landmark", 1, 100, ""), reg("b", 5, 100, `,"innerOffset":1`))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, codec := range []chunkfmt.Codec{chunkfmt.Gzip, chunkfmt.Zstd} {
			where := at
			where.codec = codec
			x, err := build(t.Context(), raw, where, size, Options{Digest: chunkfmt.Sum(nil), Limits: Limits{Entries: 1000}})
			if err != nil {
				if !errors.Is(err, chunkfmt.ErrInvalid) && !errors.Is(err, ErrUnsupported) {
					t.Fatalf("an error of no kind: %v", err)
				}
				continue
			}
			if err := x.Validate(); err != nil {
				t.Fatal(err)
			}
			for i := range x.Chunks {
				if c := &x.Chunks[i]; c.Blob != chunkfmt.Hole {
					if _, ok := x.DeviceOffset(c); !ok {
						t.Fatalf("chunk %d has no place", i)
					}
				}
			}
		}
	})
}

// FuzzFooter gives any bytes as the end of a layer.
func FuzzFooter(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x000000000000000005STARGZ\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"), "")
	f.Add(append([]byte("\x50\x2a\x4d\x18\x28\x00\x00\x00"), "\x10\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00GNUlInUx"...), "")
	f.Add([]byte("layer"), "1:2:3:1")
	f.Fuzz(func(t *testing.T, blob []byte, position string) {
		o := Options{AllowUnverified: true, Digest: chunkfmt.Sum(nil), Limits: Limits{Stored: 1 << 16, Plain: 1 << 16, Entries: 100}}
		if position != "" {
			o.Annotations = map[string]string{PositionAnnotation: position}
		}
		x, err := Open(t.Context(), bytes.NewReader(blob), int64(len(blob)), o)
		if err == nil && x.Validate() != nil {
			t.Fatal(x.Validate())
		}
	})
}

// TestUnpacksAsContainerd checks what unpacking makes of attributes.
func TestUnpacksAsContainerd(t *testing.T) {
	x, err := build(t.Context(), []byte(table(
		`{"name":"./","type":"dir","mode":448,"uid":7}`,
		`{"name":"a","type":"fifo","mode":420,"modtime":"1969-12-31T23:59:59Z"}`,
		`{"name":"b","type":"hardlink","linkName":"a"}`,
		`{"name":"c","type":"fifo","mode":420}`,
		`{"name":"d","type":"hardlink","linkName":"c","mode":384,"uid":7,"modtime":"2020-01-02T03:04:05.6Z"}`,
	)), at, size, Options{Digest: chunkfmt.Sum(nil)})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode  uint16
		uid   uint32
		mtime int64
	}{"": {0o755, 0, 0}, "a": {0o644, 0, 0}, "b": {0o644, 0, 0}, "c": {0o600, 7, 1577934245}, "d": {0o600, 7, 1577934245}} {
		i, err := x.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		if a, n := x.Attr(i), &x.Inodes[i]; a.Mode != want.mode || a.UID != want.uid || n.Mtime != want.mtime {
			t.Errorf("%q is %+v %+v", name, a, n)
		}
	}
}
