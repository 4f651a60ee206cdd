package erofs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
)

// script is bytes that say how to make a tree. At its end all is zero.
type script []byte

func (s *script) byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

func (s *script) number() int64 { return int64(s.byte()) | int64(s.byte())<<8 }

func (s *script) text(n int) string {
	n = min(n, len(*s))
	text := string((*s)[:n])
	*s = (*s)[n:]
	return text
}

// name is mostly short, so that names meet.
func (s *script) name() string {
	n := int(s.byte())
	if n < 250 {
		n %= 12
	}
	return s.text(n)
}

// makeTree makes a tree as a script says.
func makeTree(t testing.TB, s script) (*fixture, *chunkfmt.Tree) {
	f := newFixture(t)
	f.blob()
	f.blob()
	f.blob()
	f.group(0, f.random(2*block), f.random(block), f.random(100))
	for len(s) > 0 {
		op, name := s.byte(), s.name()
		if op%16 == 15 {
			f.tryLink(name, s.name())
			continue
		}
		n := &chunkfmt.Node{Kind: chunkfmt.Kind(op % 7), Mode: uint16(s.number()) & 0o7777}
		f.fill(n, &s)
		_ = f.draft.Put(name, n) // some cannot be
	}
	return f, f.tree()
}

// tryLink makes a hard link where one can be.
func (f *fixture) tryLink(name, target string) {
	n := f.draft.Find(target)
	if n == nil || n.Kind == chunkfmt.Dir || f.draft.Find(name) != nil || f.draft.Put(name, inline("")) != nil {
		return // a link that fails would leave a whiteout
	}
	if f.draft.Find(target) == n {
		f.link(name, target)
	}
}

func (f *fixture) fill(n *chunkfmt.Node, s *script) {
	flags := s.byte()
	if flags&1 != 0 {
		n.UID, n.GID = uint32(s.number()*1234), uint32(s.number())
	}
	if flags&2 != 0 {
		n.Mtime, n.Nsec = (s.number()<<16|s.number())<<8-1<<39, uint32(s.number())*10000
	}
	if flags&4 != 0 {
		prefix := "trusted."
		if n.Kind == chunkfmt.Dir || n.Kind == chunkfmt.File {
			prefix = "user."
		}
		for range s.byte() % 5 {
			name := prefix + strings.ReplaceAll(s.text(int(s.byte()%20)), "\x00", "0") + "x"
			n.Xattrs = append(n.Xattrs, chunkfmt.Xattr{Name: name, Value: strings.Repeat(s.text(3), int(s.byte()))})
		}
	}
	switch n.Kind {
	case chunkfmt.File:
		f.fillFile(n, s)
	case chunkfmt.Symlink:
		target := strings.ReplaceAll("t"+strings.Repeat(s.name(), 1+int(s.byte())%20), "\x00", "0")
		n.Target = target[:min(len(target), chunkfmt.MaxPath)]
	case chunkfmt.CharDevice, chunkfmt.BlockDevice:
		n.Size = s.number()&0xfff<<32 | s.number()<<4
	}
}

func (f *fixture) fillFile(n *chunkfmt.Node, s *script) {
	kind := s.byte()
	if kind%3 == 0 {
		n.Inline = bytes.Repeat([]byte{kind}, int(s.number())%10000)
		n.Size = int64(len(n.Inline))
		return
	}
	if kind%3 == 1 {
		lengths := make([]int, 1+s.byte()%6)
		for i := range lengths {
			lengths[i] = 1 + int(s.number())%9000
		}
		content := f.sparse(int(kind)/3%3, lengths...)
		n.Size, n.Chunks = content.Size, content.Chunks
		return
	}
	for range s.byte() % 6 {
		switch c := s.byte(); c % 4 {
		case 0:
			n.Chunks = append(n.Chunks, f.hole(uint32(1+c%7)*block))
		case 1:
			n.Chunks = append(n.Chunks, f.group(int(c)%3, f.random(int(c)%5*block+block))...)
		default:
			// Chunks that others have too, some of which end amid a block.
			n.Chunks = append(n.Chunks, uint32(c)%uint32(len(f.chunks)))
		}
	}
	for _, c := range n.Chunks {
		n.Size += int64(f.chunks[c].Length)
	}
}

func randomScript(seed byte) script {
	source := rand.NewChaCha8([32]byte{seed})
	s := make(script, 200+40*int(seed))
	_, _ = source.Read(s)
	return s
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x00\x01a\xed\x01\x00\x01\x03a/b\xa4\x01\x00\x00\x05\x00\x0f\x01c\x03a/b"))
	for seed := range byte(20) {
		f.Add([]byte(randomScript(seed)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		f, tree := makeTree(t, script(data))
		_, err := erofs.Write(io.Discard, tree, erofs.Options{MaxBytes: 64 << 20})
		if err != nil {
			if !errors.Is(err, erofs.ErrUnmappable) {
				t.Fatal(err)
			}
			return
		}
		image, devices := write(t, f, tree)
		compare(t, tree, newGoView(t, image, devices))
		compare(t, tree, newGoView(t, export(t, f, tree), nil))
	})
}

// What the fuzzer makes is also shown by the kernel and accepted by fsck.erofs.
func TestKernelSeesRandomTrees(t *testing.T) {
	needMount(t)
	accepted := 0
	for seed := range byte(60) {
		f, tree := makeTree(t, randomScript(seed))
		if _, err := erofs.Write(io.Discard, tree, erofs.Options{}); err != nil {
			continue // ends amid a block
		}
		accepted++
		image, devices := onDisk(t, f, tree)
		fsckImage(t, image, devices)
		compare(t, tree, osView(mount(t, image, devices)))
		file := filepath.Join(t.TempDir(), "export")
		if err := os.WriteFile(file, export(t, f, tree), 0o600); err != nil {
			t.Fatal(err)
		}
		compare(t, tree, osView(mount(t, file, nil)))
	}
	if accepted < 20 {
		t.Errorf("%d of 60 trees could be written", accepted)
	}
}

func FuzzDevices(f *testing.F) {
	fix := newFixture(f)
	manyDevices(fix)
	image, _ := write(f, fix, fix.tree())
	f.Add(image)
	f.Add(image[:2*block])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		devices, err := erofs.Devices(bytes.NewReader(data))
		if err == nil && len(devices) > len(data)/128 {
			t.Errorf("%d devices in %d bytes", len(devices), len(data))
		}
	})
}
