package chunkfmt

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Few bytes of an index can share one large string among many inodes.
func TestSharedMetadataIsBounded(t *testing.T) {
	const inodes, each = 1000, 3000
	long := strings.Repeat("x", each)
	tests := map[string]func(d *Draft, name string) error{
		"xattrs": func(d *Draft, name string) error {
			return d.Put(name, &Node{Kind: File, Xattrs: []Xattr{{"user.a", long}}})
		},
		"targets": func(d *Draft, name string) error { return d.Put(name, &Node{Kind: Symlink, Target: long}) },
		"paths": func(d *Draft, name string) error {
			name = strings.Repeat(strings.Repeat("d", 250)+"/", 12) + name
			return errors.Join(d.Put(name, &Node{Kind: File}), d.Link(name+"+", name))
		},
	}
	for name, put := range tests {
		t.Run(name, func(t *testing.T) {
			d := NewDraft()
			for i := range inodes {
				if err := put(d, fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
			}
			p := mustEncode(t, frozen(t, d, nil, nil))
			if _, err := Decode(p, Limits{Metadata: inodes * (each + 40)}); err != nil {
				t.Error(err)
			}
			if _, err := Decode(p, Limits{Metadata: inodes * each}); !errors.Is(err, ErrInvalid) {
				t.Errorf("%d bytes are accepted: %v", len(p), err)
			}
		})
	}
}

func TestMetadataOfEncodeAndMerge(t *testing.T) {
	many := func(files int) *Index {
		d := NewDraft()
		for i := range files {
			n := &Node{Kind: File, Xattrs: []Xattr{{"user.a", strings.Repeat("x", MaxXattrValue)}}}
			if err := d.Put(fmt.Sprintf("%d-%d", files, i), n); err != nil {
				t.Fatal(err)
			}
		}
		return frozen(t, d, nil, nil)
	}
	if _, err := Encode(many(17000)); !errors.Is(err, ErrInvalid) {
		t.Errorf("Encode: %v", err)
	}
	a, b := many(8500), many(8501)
	mustEncode(t, a)
	mustEncode(t, b)
	if _, err := Merge(&a.Tree, &b.Tree); !errors.Is(err, ErrInvalid) {
		t.Errorf("Merge: %v", err)
	}
}

func TestMetadataSize(t *testing.T) {
	d := NewDraft()
	x := frozen(t, d, nil, nil,
		d.Put("a/b/file", &Node{Kind: File, Xattrs: []Xattr{{"user.a", "123"}}}), // 8 + 6 + 3
		d.Link("a/c", "a/b/file"),                           // 4 + 3
		d.Put("a/link", &Node{Kind: Symlink, Target: "to"}), // 4 + 2
	)
	if got := metadataSize(&x.Tree); got != 17+7+6 {
		t.Errorf("%d bytes", got)
	}
	p := mustEncode(t, x)
	if _, err := Decode(p, Limits{Metadata: 30}); err != nil {
		t.Error(err)
	}
	if _, err := Decode(p, Limits{Metadata: 29}); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

// A decoded attribute takes 24 times the bytes that it has in the index.
func TestXattrsAreBounded(t *testing.T) {
	d := NewDraft()
	n := &Node{Kind: File}
	for i := range 1000 {
		n.Xattrs = append(n.Xattrs, Xattr{Name: fmt.Sprintf("user.%d", i)})
	}
	p := mustEncode(t, frozen(t, d, nil, nil, d.Put("a", n), d.Put("b", &Node{Kind: File, Xattrs: n.Xattrs[:1:1]})))
	if _, err := Decode(p, Limits{Attrs: 1001}); err != nil {
		t.Error(err)
	}
	if _, err := Decode(p, Limits{Attrs: 1000}); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
}
