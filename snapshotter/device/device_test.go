package device

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sys/unix"
)

func TestWriteRefuses(t *testing.T) {
	x, s := some(t, 1, false), openStore(t, Options{After: still})
	d := get(t, s, x)
	for _, c := range []struct {
		group int
		plain []byte
	}{{-1, nil}, {len(x.plain), nil}, {0, nil}, {0, make([]byte, len(x.plain[0])+1)}} {
		if err := d.Write(c.group, c.plain); err == nil {
			t.Errorf("group %d of %d bytes was written", c.group, len(c.plain))
		}
	}
	if err := d.Drop([]int{0, len(x.plain)}); err == nil {
		t.Error("a group was dropped that there is not")
	}
	if d.Has(-1) || d.Has(len(x.plain)+640) || d.Has(0) {
		t.Error("it has groups that there are not")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(0, x.plain[0]); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := s.Get(x.table); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if d.Writer() != nil {
		t.Error("a writer after the end")
	}
	d.Release()
}

// Bytes of an Unproven blob that no digest covers do not reach the device.
func TestUnprovenBytesStayOut(t *testing.T) {
	x, s := some(t, 1, true), openStore(t, Options{After: still})
	d := get(t, s, x)
	defer d.Release()
	for _, g := range x.groups() {
		plain := bytes.Clone(x.plain[g])
		for i := range plain {
			if !checked(x.table.Checks[g], uint32(i)) {
				plain[i] = ^plain[i]
			}
		}
		if err := d.Write(g, plain); err != nil {
			t.Fatal(err)
		}
	}
	check(t, d, x)
}

func TestSetWriter(t *testing.T) {
	x, s := some(t, 1, false), openStore(t, Options{After: still})
	d := get(t, s, x)
	defer d.Release()
	open := func(path string, flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	other := filepath.Join(t.TempDir(), "other")
	for name, f := range map[string]*os.File{
		"none": nil, "another file": open(other, os.O_RDWR|os.O_CREATE),
		"reading only": open(d.Path(), os.O_RDONLY), "appending": open(d.Path(), os.O_RDWR|os.O_APPEND),
	} {
		if err := d.SetWriter(f); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if f != nil {
			if err := f.Close(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	before, f := d.Writer(), open(d.Path(), os.O_RDWR)
	if err := d.SetWriter(f); err != nil {
		t.Fatal(err)
	}
	if d.Writer() != f || before.Close() == nil {
		t.Error("the former descriptor is still in use")
	}
	if err := d.SetWriter(f); err != nil {
		t.Error(err)
	}
	fill(t, d, x)
	check(t, d, x)
	if err := s.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOrigins(t *testing.T) {
	x, dir := some(t, 1, false), t.TempDir()
	s := openStore(t, Options{Dir: dir, After: still})
	d := get(t, s, x)
	for _, bad := range []string{"", "host", "host/", "/repo", "host/a b", "host/a\nb/c", "host/ü", "h/" + strings.Repeat("a", maxOriginBytes)} {
		if err := d.AddOrigin(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	var want []string
	for i := range 3000 {
		origin := fmt.Sprintf("registry.example:5000/team/image-%d", i%20)
		if err := d.AddOrigin(origin); err != nil {
			t.Fatal(err)
		}
		want = slices.DeleteFunc(want, func(s string) bool { return s == origin })
		want = slices.Insert(want, 0, origin)
		want = want[:min(len(want), maxOrigins)]
	}
	if got := d.Origins(); !slices.Equal(got, want) {
		t.Errorf("origins %q, want %q", got, want)
	}
	path := filepath.Join(s.dir(d.Key()), originsFile)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > maxOriginsFile {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("registry.example/cut-sho"); err != nil { // by a crash
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		s = openStore(t, Options{Dir: dir, After: still})
		if d, err = s.Load(x.table.Key); err != nil {
			t.Fatal(err)
		}
		if got := d.Origins(); !slices.Equal(got, want) {
			t.Errorf("origins %q, want %q", got, want)
		}
		if i == 0 {
			want = slices.Insert(want, 0, "registry.example/new")[:maxOrigins]
			if err := d.AddOrigin(want[0]); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEmptyDevice(t *testing.T) {
	tree := &chunkfmt.Tree{Blobs: []chunkfmt.Blob{{
		Digest: chunkfmt.Digest{1}, Size: 5,
		Groups: []chunkfmt.Group{{Stored: 5, Codec: chunkfmt.Filler, Digest: chunkfmt.Digest{2}}},
	}}}
	table, err := NewTable(tree, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Options{After: still})
	for range 2 {
		d, err := s.Get(table)
		if err != nil {
			t.Fatal(err)
		}
		<-d.Done()
		if !d.Complete() || !d.Has(0) || d.Write(0, nil) != nil {
			t.Error("a device without content lacks something")
		}
		d.Release()
		if _, err := s.Prune(0); err != nil {
			t.Error(err)
		}
	}
}

// many returns a device of 1000 groups of 64 KiB.
func many(t testing.TB, seed byte) *Table {
	tree := &chunkfmt.Tree{Blobs: []chunkfmt.Blob{{Digest: chunkfmt.Digest{1, seed}, DeviceSize: 1000 << 16}}}
	b := &tree.Blobs[0]
	for i := range int64(1000) {
		b.Groups = append(b.Groups, chunkfmt.Group{
			Offset: b.Size, Stored: 30000, Plain: 1 << 16, Codec: chunkfmt.Zstd,
			Digest: chunkfmt.Sum([]byte{byte(i), byte(i >> 8), seed}), Device: i << 16,
		})
		b.Size += 30000
	}
	table, err := NewTable(tree, 0)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestMemory(t *testing.T) {
	s := openStore(t, Options{After: still})
	const n = 40
	var keys []Key
	for i := range byte(n) {
		table := many(t, i)
		d, err := s.Get(table)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, table.Key)
		d.Release()
	}
	s.tend()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	idle := heap()
	var devices []*Device
	for _, key := range keys {
		d, err := s.Load(key)
		if err != nil {
			t.Fatal(err)
		}
		devices = append(devices, d)
	}
	used := heap()
	per := (used - idle) / n
	t.Logf("%d bytes for a device of 1000 groups", per)
	if per > 120<<10 {
		t.Errorf("a device of 1000 groups takes %d bytes", per)
	}
	for _, d := range devices {
		d.Release()
	}
	s.tend()
	clear(devices)
	if left := (heap() - idle) / n; left > 2000 {
		t.Errorf("%d bytes are left of a device that is not used", left)
	}
}

const killedDir = "DAMSELFLY_TEST_KILLED_DIR"

// TestKilledProcess kills a process that fills a device.
func TestKilledProcess(t *testing.T) {
	x := some(t, 7, false)
	if dir := os.Getenv(killedDir); dir != "" {
		beKilled(t, dir, x)
		return
	}
	dir := t.TempDir()
	r := rand.New(rand.NewSource(1)) // #nosec G404 -- test data
	for range 8 {
		sure := runAndKill(t, dir, 1+r.Intn(25))
		s := openStore(t, Options{Dir: dir, After: still})
		d := get(t, s, x)
		for _, g := range sure {
			if !d.Has(g) {
				t.Errorf("group %d was synced and is missing", g)
			}
		}
		check(t, d, x)
		d.Release()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// runAndKill returns the groups that were synced, and not dropped, before the
// process died.
func runAndKill(t *testing.T, dir string, lines int) []int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledProcess$") // #nosec G204 -- this test
	cmd.Env = append(os.Environ(), killedDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var sure []int
	scan := bufio.NewScanner(out)
	for i := 0; scan.Scan(); i++ {
		var g int
		if _, err := fmt.Sscanf(scan.Text(), "synced %d", &g); err == nil {
			sure = append(sure, g)
		} else if _, err := fmt.Sscanf(scan.Text(), "drop %d", &g); err == nil {
			sure = slices.DeleteFunc(sure, func(s int) bool { return s == g })
		} else {
			t.Errorf("the process says %q", scan.Text())
		}
		if i == lines {
			if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	return sure
}

// beKilled fills and drops until its end.
func beKilled(t *testing.T, dir string, x *blob) {
	s, err := Open(Options{Dir: dir, SyncEvery: 1})
	if err != nil {
		t.Fatal(err)
	}
	d := get(t, s, x)
	for {
		for _, g := range x.groups() {
			fill(t, d, x)
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := io.WriteString(os.Stdout, fmt.Sprintf("synced %d\ndrop %d\n", g, g))
			if err := errors.Join(err, d.Drop([]int{g})); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, parts := range []string{"one", "small"} {
		b.Run(parts, func(b *testing.B) {
			const size = 1 << 20
			g := chunkfmt.Group{Stored: size, Plain: size, Digest: chunkfmt.Digest{1}}
			if parts == "small" {
				for off := uint32(0); off < size; off += 8 << 10 {
					g.Segments = append(g.Segments, chunkfmt.Segment{Offset: off, Length: 7 << 10, Device: int64(off)})
				}
			}
			tree := &chunkfmt.Tree{Blobs: []chunkfmt.Blob{{Digest: chunkfmt.Digest{1}, Size: size, DeviceSize: size, Groups: []chunkfmt.Group{g}}}}
			table, err := NewTable(tree, 0)
			if err != nil {
				b.Fatal(err)
			}
			d, err := openStore(b, Options{After: still}).Get(table)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Release()
			plain := make([]byte, size)
			b.SetBytes(size)
			for b.Loop() {
				if err := d.Write(0, plain); err != nil {
					b.Fatal(err)
				}
				if err := d.Drop([]int{0}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
