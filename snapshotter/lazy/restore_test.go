package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// restored is what containerd's snapshots say after a restart, of all prefixes
// of a chain. The topmost is used.
func restored(layers []snapshots.Layer, used bool) []snapshots.Restored {
	var all []snapshots.Restored
	for i := range layers {
		all = append(all, snapshots.Restored{Chain: layers[:i+1], Used: used && i == len(layers)-1})
	}
	return all
}

// offline makes a process that can ask nobody.
func offline(o *Options) {
	o.Registry = func(context.Context, image.Ref) (*image.Source, error) { return nil, errors.New("a registry is asked") }
	o.Policy = nil
}

// writeOver damages a file.
func writeOver(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, name string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 0xff
	writeOver(t, name, data)
}

func removeAll(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// TestRestart starts again after every kind of damage, and after a crash at every
// step, with nobody to ask but the local disk.
func TestRestart(t *testing.T) {
	t.Parallel()
	// reboot is that nothing is mounted any more.
	reboot := func(n *node, _ *process, dir string) { n.kernel.set(dir, "") }
	file := func(dir, name string) string { return filepath.Join(filepath.Dir(dir), name) }
	for _, tt := range []struct {
		name   string
		damage func(n *node, p *process, dir string)
		want   string // operations of the backend
		fails  bool
	}{
		{name: "nothing", want: "adopt"},
		{name: "reboot", damage: reboot, want: "adopt mount"},
		{name: "record is gone, killed before it was written", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			removeAll(n.t, file(dir, fileRecord))
		}, want: "mount"},
		{name: "killed while metadata was written", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			removeAll(n.t, file(dir, fileRecord))
			removeAll(n.t, file(dir, dirRoot))
			writeOver(n.t, file(dir, ".new-1"), []byte("half"))
			removeAll(n.t, file(dir, fileMeta))
		}, want: "mount"},
		{name: "directory is gone", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			removeAll(n.t, filepath.Dir(dir))
		}, want: "mount"},
		{name: "record is damaged", damage: func(n *node, _ *process, dir string) {
			writeOver(n.t, file(dir, fileRecord), []byte(`{"version":1,`))
		}, want: "adopt"},
		{name: "record is of the future", damage: func(n *node, _ *process, dir string) {
			writeOver(n.t, file(dir, fileRecord), []byte(`{"version":2}`))
		}, want: "adopt"},
		{name: "record has garbage", damage: func(n *node, _ *process, dir string) {
			writeOver(n.t, file(dir, fileRecord), []byte(`{"version":1,"backend":"fake","mounted":true,"devices":["x"]}`))
		}, want: "adopt"},
		{name: "record is damaged, after a reboot", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			writeOver(n.t, file(dir, fileRecord), nil)
		}, want: "adopt mount"},
		{name: "metadata is damaged, after a reboot", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			flip(n.t, file(dir, fileMeta))
		}, want: "adopt adopt mount"},
		{name: "metadata is short, after a reboot", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			writeOver(n.t, file(dir, fileMeta), []byte("x"))
		}, want: "adopt adopt mount"},
		{name: "devices are gone", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			removeAll(n.t, filepath.Join(n.dir, "devices"))
		}, want: "adopt mount"},
		{name: "one index is damaged, and not needed", damage: func(n *node, p *process, _ string) {
			for _, indexes := range p.layers.all {
				for d := range indexes {
					flip(n.t, p.indexes.path(d))
				}
			}
		}, want: "adopt"},
		{name: "all is damaged", damage: func(n *node, p *process, dir string) {
			reboot(n, p, dir)
			for _, indexes := range p.layers.all {
				for d := range indexes {
					flip(n.t, p.indexes.path(d))
				}
			}
			flip(n.t, file(dir, fileMeta))
		}, want: "adopt", fails: true},
		{name: "another backend", damage: func(n *node, _ *process, dir string) { n.kernel.set(dir, "other") }, want: "mount"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			x := n.push("app", n.signed(), layersOf(1, 2)...)
			p := n.start(func(o *Options) {
				if b, ok := o.Backend.(*fakeBackend); ok && tt.name == "another backend" {
					b.name = "other"
				}
			})
			layers := p.pull(x)
			dir := p.mountOf(layers)
			p.settled()
			p.end()
			if tt.damage != nil {
				tt.damage(n, p, dir)
			}
			p = n.start(offline)
			if err := p.Restore(t.Context(), restored(layers, true)); err != nil {
				t.Fatal(err)
			}
			if got := p.backend.did(); got != tt.want {
				t.Errorf("the backend did %q, want %q", got, tt.want)
			}
			_, err := p.Mounted(t.Context(), layers)
			if tt.fails {
				if err == nil || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || n.kernel.get(dir) != "fake" {
				t.Fatalf("mounted %q, %v", n.kernel.get(dir), err)
			}
			if got := p.backend.did(); got != tt.want {
				t.Errorf("the backend did %q after Restore", got)
			}
			// And once more: the records are whole again.
			p.end()
			p = n.start(offline)
			if err := p.Restore(t.Context(), restored(layers, true)); err != nil {
				t.Fatal(err)
			}
			if got := p.backend.did(); got != "adopt" {
				t.Errorf("the third process did %q", got)
			}
			if left, err := filepath.Glob(file(dir, tempPattern)); err != nil || len(left) > 0 {
				t.Errorf("left are %v, %v", left, err)
			}
		})
	}
}

func TestRestoreRemovesWhatIsLeft(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(n *node, dir string){
		"mounted": nil,
		"damaged": func(n *node, dir string) {
			writeOver(n.t, filepath.Join(filepath.Dir(dir), fileRecord), []byte("x"))
		},
		"without devices": func(n *node, _ string) { removeAll(n.t, filepath.Join(n.dir, "devices")) },
		"reboot":          func(n *node, dir string) { n.kernel.set(dir, "") },
		"other backend":   func(n *node, dir string) { n.kernel.set(dir, "other") },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			x := n.push("app", n.signed(), layersOf(1, 2)...)
			p := n.start(nil)
			dir := p.mountOf(p.pull(x))
			p.settled()
			p.end()
			if damage != nil {
				damage(n, dir)
			}
			p = n.start(offline)
			if err := p.Restore(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			left, err := p.mounts.onDisk()
			if err != nil || len(left) > 0 || n.indexFiles() != 0 || n.kernel.count() != 0 {
				t.Errorf("left are %v, %v, %d indexes, %d mounts", left, err, n.indexFiles(), n.kernel.count())
			}
			if strings.Contains(p.backend.did(), " mount") {
				t.Errorf("the backend did %s", p.backend.did())
			}
		})
	}
}

func TestRestoreMountsOnlyWhatIsNeeded(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 2)...)
	p := n.start(nil)
	layers := p.pull(x)
	dir := p.mountOf(layers)
	p.settled()
	p.end()
	p = n.start(offline)
	if err := p.Restore(t.Context(), restored(layers, false)); err != nil {
		t.Fatal(err)
	}
	if p.backend.did() != "adopt" {
		t.Errorf("an idle mount: %s", p.backend.did())
	}
	n.pass(p.o.IdleAfter)
	p.tidy(t.Context())
	if n.kernel.count() != 0 {
		t.Error("it stays")
	}
	p.mountOf(layers)
	p.end()
	n.kernel.set(dir, "")
	p = n.start(offline)
	if err := p.Restore(t.Context(), restored(layers, false)); err != nil {
		t.Fatal(err)
	}
	if p.backend.did() != "" || n.indexFiles() != 2 {
		t.Errorf("after a reboot: %s, %d indexes", p.backend.did(), n.indexFiles())
	}
	p.mountOf(layers)
}

func TestRestoreOfManyIsParallelAndIsolated(t *testing.T) {
	t.Parallel()
	const many = 200
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	p := n.start(nil)
	layer := p.pull(x)[0]
	p.settled()
	var all []snapshots.Restored
	for i := range many {
		l := snapshots.Layer{ChainID: digest.FromString(fmt.Sprint(i)).String(), Labels: layer.Labels}
		p.mountOf([]snapshots.Layer{l})
		all = append(all, snapshots.Restored{Chain: []snapshots.Layer{l}, Used: true})
	}
	p.end()
	p = n.start(offline)
	var mu sync.Mutex
	at, together, met := 0, make(chan struct{}), false
	p.backend.setFail(func(_ string, im *backend.Image) error {
		mu.Lock()
		at++
		if at == restorers && !met {
			met = true
			close(together)
		}
		mu.Unlock()
		<-together // all have to be here at the same time
		if im.ID == digest.FromString("7").Encoded() {
			return errTest
		}
		return nil
	})
	if err := p.Restore(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	mounted := 0
	p.Mounts(func(m Mounted, _ string) {
		mounted++
		if !m.Adopted {
			t.Errorf("%s is not said to be adopted", m.Chain)
		}
	})
	if mounted != many-1 {
		t.Errorf("%d mounts are restored", mounted)
	}
	// What could not be taken over was left alone, and is when it is asked for.
	if _, err := p.Mounted(t.Context(), all[7].Chain); !errors.Is(err, errTest) || n.kernel.count() != many {
		t.Errorf("error %v, %d mounts", err, n.kernel.count())
	}
	p.backend.setFail(nil)
	p.mountOf(all[7].Chain)
}

func TestRestoreEndsWithItsContext(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	p := n.start(nil)
	layers := p.pull(x)
	p.mountOf(layers)
	p.settled()
	p.end()
	p = n.start(offline)
	ctx, cancel := context.WithCancel(t.Context())
	p.backend.setFail(func(string, *backend.Image) error { cancel(); return ctx.Err() })
	if err := p.Restore(ctx, restored(layers, true)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if n.kernel.count() != 1 {
		t.Error("the mount is gone")
	}
}

func TestTwoIndexesOfOneChain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	files := layersOf(1, 1)
	a := n.push("a", n.signed(), files...)
	p := n.start(nil)
	p.ahead <- struct{}{}
	p.ahead <- struct{}{}
	first := p.pull(a)
	other := n.push("b", n.signed(), files...)
	n.convert(other.ref, n.registry.Host+"/c:v1", asImage()) // the same tar, another index
	c := n.look(n.registry.Host + "/c:v1")
	if c.chains[0] != a.chains[0] {
		t.Fatalf("chain %s, not %s", c.chains[0], a.chains[0])
	}
	second := p.pull(c)
	if first[0].Labels[LabelIndex] == second[0].Labels[LabelIndex] {
		t.Fatal("one index")
	}
	<-p.ahead
	<-p.ahead
	p.settled() // one of them is mounted
	for _, layers := range [][]snapshots.Layer{first, second} {
		p.mountOf(layers)
		e := p.mounts.all[a.chains[0]]
		if got := e.layers[0].Index.String(); got != layers[0].Labels[LabelIndex] {
			t.Errorf("mounted by index %s", got)
		}
		// One that is in use is not replaced.
		before := p.backend.did()
		p.mountOf(first)
		p.mountOf(second)
		if p.backend.did() != before {
			t.Errorf("the backend did %s", p.backend.did())
		}
		p.Idle(t.Context(), a.chains[0].String())
	}
	n.pass(keepYes)
	p.lookups.expire()
	if n.indexFiles() != 2 {
		t.Errorf("%d indexes", n.indexFiles())
	}
	p.end()
	p = n.start(offline)
	if err := p.Restore(t.Context(), append(restored(first, true), restored(second, false)...)); err != nil {
		t.Fatal(err)
	}
	if n.indexFiles() != 2 || p.backend.did() != "adopt" {
		t.Errorf("%d indexes after a restart, %s", n.indexFiles(), p.backend.did())
	}
	p.Removed(t.Context(), a.chains[0].String())
	if n.indexFiles() != 0 {
		t.Errorf("%d indexes are left", n.indexFiles())
	}
}

// A record of what an image of less trust has left mounted is not taken over.
func TestReplaceAfterRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	files := layersOf(1, 1)
	x := n.push("a", n.signed(), files...)
	p := n.start(nil)
	layers := p.pull(x)
	p.settled()
	p.end()
	p = n.start(offline)
	other := snapshots.Layer{ChainID: layers[0].ChainID, Labels: map[string]string{}}
	for k, v := range layers[0].Labels {
		other.Labels[k] = v
	}
	other.Labels[LabelIndex] = digest.FromString("another").String()
	if err := p.Restore(t.Context(), restored([]snapshots.Layer{other}, true)); err != nil {
		t.Fatal(err)
	}
	if p.backend.did() != "adopt" { // it is in use
		t.Errorf("the backend did %s", p.backend.did())
	}
	p.Idle(t.Context(), other.ChainID)
	if _, err := p.Mounted(t.Context(), []snapshots.Layer{other}); err == nil || p.backend.did() != "adopt unmount" {
		t.Errorf("error %v, %s", err, p.backend.did())
	}
}

func TestDiskIsFull(t *testing.T) {
	t.Parallel()
	testenv.Integration(t)
	testenv.Root(t)
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	small := filepath.Join(n.dir, "lazy")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, small)
	p := n.start(nil)
	p.devices.Recovered()
	layers := p.pull(x)
	p.settled()
	p.Removed(t.Context(), layers[0].ChainID)
	layers = p.pull(x)
	writeOver(t, filepath.Join(small, "fill"), bytes.Repeat([]byte{1}, 1<<10))
	for size := int64(32 << 10); size >= 512; {
		f, err := os.OpenFile(filepath.Join(small, "fill"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
		_ = f.Close()
	}
	if _, err := p.Mounted(t.Context(), layers); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	y := n.push("other", n.signed(), layersOf(2, 1)...)
	if d := p.Layer(t.Context(), y.request(0)); d.Reason.Code != LocalTrouble {
		t.Errorf("reason %v", d.Reason)
	}
	removeAll(t, filepath.Join(small, "fill"))
	p.mountOf(layers)
	n.pass(keepPassing)
	p.pull(y)
	p.settled()
}

func TestIndexesAreRepaired(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	p := n.start(nil)
	layers := p.pull(x)
	p.settled()
	name := p.indexes.path(digest.Digest(layers[0].Labels[LabelIndex]))
	flip(t, name)
	if _, err := p.indexes.get(digest.Digest(layers[0].Labels[LabelIndex])); err == nil {
		t.Error("a damaged index was read")
	}
	if _, err := p.indexes.get("x"); err == nil {
		t.Error("an index without a digest was read")
	}
	n.pass(keepYes)
	p.pull(x)
	p.settled()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chunkfmt.Decode(data, chunkfmt.Limits{}); err != nil {
		t.Error(err)
	}
}

// mountTmpfs mounts 64 KiB of memory.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// TestRestoreIsTriedAgain has a mount that containers use fail to be taken over
// at first, as without a holder that answers.
func TestRestoreIsTriedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 2)...)
	p := n.start(nil)
	layers := p.pull(x)
	p.mountOf(layers)
	p.settled()
	p.end()

	p = n.start(nil)
	p.backend.setFail(func(string, *backend.Image) error { return errTest })
	if err := p.Restore(t.Context(), restored(layers, true)); err != nil {
		t.Fatal(err)
	}
	p.retry(t.Context())
	if len(p.lost) != 1 {
		t.Errorf("%d chains are to be tried again, want 1", len(p.lost))
	}
	p.backend.setFail(nil)
	p.retry(t.Context())
	if len(p.lost) != 0 {
		t.Errorf("%d chains are to be tried again after they were mounted", len(p.lost))
	}
	p.mountOf(layers)
}
