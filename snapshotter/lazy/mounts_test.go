package lazy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

func TestIdleMountsGo(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 2)...)
	p := n.start(nil)
	layers := p.pull(x)
	p.settled() // mounted ahead
	top := layers[1].ChainID
	n.pass(p.o.IdleAfter - 1)
	p.tidy(t.Context())
	if n.kernel.count() != 1 {
		t.Fatal("a mount went too early")
	}
	p.mountOf(layers)
	n.pass(time.Hour)
	p.tidy(t.Context())
	if n.kernel.count() != 1 {
		t.Fatal("a mount went that is in use")
	}
	// Another lookup of the image does not make it an idle one.
	p.pull(x)
	p.settled()
	n.pass(time.Hour)
	p.tidy(t.Context())
	if n.kernel.count() != 1 {
		t.Fatal("a mount went that is in use, after another pull")
	}
	p.Idle(t.Context(), top)
	n.pass(time.Hour)
	p.backend.setFail(func(op string, _ *backend.Image) error {
		if op == "unmount" {
			return errTest
		}
		return nil
	})
	p.tidy(t.Context())
	if n.kernel.count() != 1 {
		t.Fatal("a mount went that cannot")
	}
	p.Removed(t.Context(), top) // only logs
	if n.kernel.count() != 1 {
		t.Fatal("a mount went that cannot")
	}
	p.Idle(t.Context(), top)
	p.backend.setFail(nil)
	n.pass(p.o.IdleAfter)
	p.tidy(t.Context())
	if n.kernel.count() != 0 {
		t.Error("an idle mount stays")
	}
}

func TestRunTidies(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	tick := make(chan time.Time)
	p := n.start(func(o *Options) {
		o.After = func(d time.Duration) <-chan time.Time {
			if d == retryEvery {
				return nil
			}
			return tick
		}
	})
	layers := p.pull(x)
	p.mountOf(layers)
	p.Idle(t.Context(), layers[0].ChainID)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	n.pass(time.Hour)
	tick <- time.Time{}
	tick <- time.Time{} // the first is dealt with
	if n.kernel.count() != 0 {
		t.Error("an idle mount stays")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFailedMountsMakeImagesOrdinary(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x, y, z := n.push("x", n.signed(), layersOf(1, 1)...), n.push("y", n.signed(), layersOf(2, 1)...), n.push("z", n.signed(), layersOf(3, 1)...)
	p := n.start(nil)
	p.backend.setFail(func(op string, _ *backend.Image) error {
		if op == "mount" {
			return errTest
		}
		return nil
	})
	layers := p.pull(x)
	p.settled()
	for range 3 {
		if _, err := p.Mounted(t.Context(), layers); !errors.Is(err, errTest) {
			t.Errorf("error %v", err)
		}
	}
	p.pull(y) // it may have been the image's fault
	p.settled()
	if d := p.Layer(t.Context(), z.request(0)); d.Reason.Code != NoBackend || !strings.Contains(d.Reason.Detail, errTest.Error()) {
		t.Errorf("reason %v", d.Reason)
	}
	n.pass(keepTrouble)
	p.backend.setFail(nil)
	p.pull(z)
	p.settled()
	p.mountOf(layers)
	if len(p.mounts.trouble.chains) != 0 {
		t.Error("the failures count still")
	}
}

func TestDevicesStayOpenWhileAMountIsUsed(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 1)...)
	p := n.start(nil)
	p.backend.gone = make(chan struct{})
	layers := p.pull(x)
	p.mountOf(layers)
	p.settled()
	inUse := func() int {
		u, err := p.devices.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u.InUse
	}
	p.Removed(t.Context(), layers[0].ChainID)
	if n.kernel.count() != 0 || inUse() == 0 {
		t.Errorf("%d mounts, %d devices in use", n.kernel.count(), inUse())
	}
	close(p.backend.gone)
	p.mounts.wg.Wait()
	if inUse() != 0 {
		t.Errorf("%d devices stay in use", inUse())
	}
	// One whose users never end does not keep the process.
	p.backend.gone = make(chan struct{})
	layers = p.pull(x)
	p.mountOf(layers)
	p.Removed(t.Context(), layers[0].ChainID)
	p.end()
}

func TestBadChain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	p := n.start(nil)
	for _, id := range []string{"", "x", "sha256:../../x"} {
		if _, err := p.Mounted(t.Context(), []snapshots.Layer{{ChainID: id}}); err == nil {
			t.Errorf("%q was mounted", id)
		}
	}
	ok := digest.FromString("a").String()
	for _, labels := range []map[string]string{nil, {LabelIndex: "sha256:../x"}, {LabelIndex: ok}} {
		if _, err := p.Mounted(t.Context(), []snapshots.Layer{{ChainID: ok, Labels: labels}}); err == nil {
			t.Errorf("%v was mounted", labels)
		}
	}
	if len(p.mounts.all) != 0 {
		t.Errorf("%d entries are left", len(p.mounts.all))
	}
	p.end()
	if _, err := p.Mounted(t.Context(), []snapshots.Layer{{ChainID: ok}}); !errors.Is(err, errClosed) {
		t.Errorf("after the end: %v", err)
	}
	p.Removed(t.Context(), ok)
	p.Stop()
}

func TestEndWhileAllIsUnderWay(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x, y := n.push("x", n.signed(), layersOf(1, 1)...), n.push("y", n.signed(), layersOf(2, 1)...)
	p := n.start(nil)
	arrived := make(chan struct{})
	p.backend.setFail(func(string, *backend.Image) error {
		close(arrived)
		<-p.ctx.Done()
		return p.ctx.Err()
	})
	p.pull(x)
	<-arrived
	// The mount of x holds one of the slots, these wait for theirs.
	p.ahead <- struct{}{}
	p.pull(y)
	listed := 0
	p.Mounts(func(Mounted, string) { listed++ })
	if listed != 0 {
		t.Errorf("%d mounts are listed", listed)
	}
	p.end()
	if d := p.Layer(t.Context(), n.push("z", nil, layersOf(3, 1)...).request(0)); d.Lazy {
		t.Error("a layer is lazy after the end")
	}
	if d := p.Layer(t.Context(), y.request(0)); d.Lazy { // known: it says yes, and mounts nothing
		p.wg.Wait()
	}
}

// TestRaces does everything at once, as containerd does: what concerns one chain
// in turn.
func TestRaces(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var images []*pulled
	for i := range 6 {
		images = append(images, n.push("app"+string(rune('a'+i)), n.signed(), layersOf(uint32(i/2), 2)...)) // pairs share their chains
	}
	p := n.start(func(o *Options) { o.IdleAfter = time.Nanosecond })
	p.devices.Recovered()
	var pairs [3]sync.Mutex
	var wg sync.WaitGroup
	for i, x := range images {
		wg.Go(func() {
			for range 5 {
				pairs[i/2].Lock()
				layers := p.pull(x)
				p.mountOf(layers)
				p.Idle(t.Context(), layers[1].ChainID)
				p.Removed(t.Context(), layers[1].ChainID)
				p.Removed(t.Context(), layers[0].ChainID)
				pairs[i/2].Unlock()
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 100 {
				n.pass(time.Second)
				p.tidy(t.Context())
				p.lookups.expire()
				p.Mounts(func(Mounted, string) {})
				p.Asked()
				p.Keep(chunkKey)
			}
		})
	}
	wg.Wait()
	p.settled()
	n.pass(time.Hour)
	p.lookups.expire()
	p.tidy(t.Context())
	if n.kernel.count() != 0 || n.indexFiles() != 0 || len(p.indexes.held) != 0 || len(p.mounts.all) != 0 {
		t.Errorf("%d mounts, %d indexes, %v held, %d entries", n.kernel.count(), n.indexFiles(), p.indexes.held, len(p.mounts.all))
	}
	u, err := p.devices.Usage()
	if err != nil || u.InUse != 0 {
		t.Errorf("%d devices in use, %v", u.InUse, err)
	}
}

var chunkKey = [32]byte{1}

func TestLinuxKnowsWhatIsMounted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "root")
	if (linux{}).attached(dir) {
		t.Error("nothing is there")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if (linux{}).attached(dir) || !(linux{}).attached("/proc") {
		t.Error("mistaken")
	}
	testenv.Integration(t)
	testenv.Root(t)
	m := &mounts{kernel: linux{}}
	for range 2 {
		mountTmpfs(t, dir)
	}
	if !(linux{}).attached(dir) {
		t.Error("a mount is not seen")
	}
	if err := m.detach(dir); err != nil || (linux{}).attached(dir) {
		t.Errorf("detach: %v", err)
	}
}

// A container must not get the empty directory that a mount was at.
func TestMountTakenAwayByOthers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	x := n.push("app", n.signed(), layersOf(1, 2)...)
	p := n.start(nil)
	layers := p.pull(x)
	p.settled()
	dir := p.mountOf(layers)
	if err := n.kernel.detach(dir); err != nil {
		t.Fatal(err)
	}
	if again := p.mountOf(layers); again != dir || !n.kernel.attached(dir) {
		t.Errorf("%s is mounted: %v", again, n.kernel.attached(dir))
	}
	if did := p.backend.did(); !strings.Contains(did, "mount unmount ") {
		t.Errorf("the backend was not told: %s", did)
	}
}
