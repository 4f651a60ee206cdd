package ahead

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/snapshotter/device"
	"github.com/damselfly-io/damselfly/snapshotter/node"
)

// groups is how many groups the devices of these tests have.
const groups = 4

// fake is a filler and what knows profiles. The filler does not fill.
type fake struct {
	profile []node.Access
	err     error                                  // of all
	fail    func(d *device.Device, n int) error    // of the n-th call for a device
	fill    bool                                   // write what is prefetched
	wait    func(ctx context.Context, what string) // may block

	mu       sync.Mutex
	log      []string
	reported []node.Access
	calls    map[*device.Device]int
	active   int
	most     int
}

func (f *fake) enter(ctx context.Context, what string) func() {
	f.mu.Lock()
	f.log = append(f.log, what)
	f.active++
	f.most = max(f.most, f.active)
	f.mu.Unlock()
	if f.wait != nil {
		f.wait(ctx, what)
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.active--
	}
}

func (f *fake) did() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

func (f *fake) Profile(ctx context.Context, _ digest.Digest) ([]node.Access, error) {
	defer f.enter(ctx, "profile")()
	return f.profile, errors.Join(f.err, ctx.Err())
}

func (f *fake) ReportAccess(ctx context.Context, _ digest.Digest, a []node.Access) error {
	defer f.enter(ctx, "report")()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reported = a
	return errors.Join(f.err, ctx.Err())
}

func (f *fake) Prefetch(ctx context.Context, d *device.Device, g []int) error {
	defer f.enter(ctx, fmt.Sprint("prefetch ", name(d), g))()
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[*device.Device]int{}
	}
	f.calls[d]++
	n := f.calls[d]
	f.mu.Unlock()
	if f.fail != nil {
		if err := f.fail(d, n); err != nil {
			return err
		}
	}
	if f.fill {
		for _, i := range g {
			if err := d.Write(i, plain(i)); err != nil {
				return err
			}
		}
	}
	return errors.Join(f.err, ctx.Err())
}

func (f *fake) Complete(ctx context.Context, d *device.Device) error {
	defer f.enter(ctx, "complete "+name(d))()
	return errors.Join(f.err, ctx.Err())
}

var names = map[digest.Digest]string{}

func name(d *device.Device) string { return names[blobOf(d)] }

func plain(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, chunkfmt.BlockSize) }

func init() {
	for _, n := range []string{"a", "b"} {
		names[blobDigest(n)] = n
	}
}

func blobDigest(name string) digest.Digest {
	return digest.Digest(chunkfmt.Sum([]byte(name)).String())
}

// devices returns devices by their names.
func devices(t *testing.T, store *device.Store, names ...string) []*device.Device {
	t.Helper()
	var all []*device.Device
	for _, n := range names {
		b := chunkfmt.Blob{Digest: chunkfmt.Sum([]byte(n))}
		for i := range groups {
			data := plain(i)
			b.Groups = append(b.Groups, chunkfmt.Group{
				Digest: chunkfmt.Sum(data), Offset: b.Size, Stored: uint32(len(data)), Plain: uint32(len(data)), Device: b.Size,
			})
			b.Size += int64(len(data))
		}
		b.DeviceSize = b.Size
		table, err := device.NewTable(&chunkfmt.Tree{Blobs: []chunkfmt.Blob{b}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		d, err := store.Get(table)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

func access(name string, group int) node.Access {
	return node.Access{Blob: blobDigest(name), Group: group}
}

// withDevices runs a test with a fake clock on devices a and b.
func withDevices(t *testing.T, f func(t *testing.T, d []*device.Device)) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "devices")
	synctest.Test(t, func(t *testing.T) {
		store, err := device.Open(device.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		f(t, devices(t, store, "a", "b"))
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

const img = digest.Digest("sha256:0")

func TestOneLife(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{profile: []node.Access{access("a", 2), access("a", 0), access("b", 1), access("a", 3)}}
		m := New(Options{Filler: f, Profiles: f, Learn: true, Background: true})
		ended := m.Mounted(Mount{Image: img, Devices: d})
		synctest.Wait()
		got := f.did()
		slices.Sort(got[1:]) // they are fetched at the same time
		if want := []string{"profile", "prefetch a[2 0]", "prefetch a[3]", "prefetch b[1]"}; !slices.Equal(got, want) {
			t.Errorf("at first %q", got)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := f.did()[4:]; !slices.Equal(got, []string{"complete b", "complete a"}) {
			t.Errorf("then %q", got)
		}
		time.Sleep(time.Hour) // nothing is reported before the first read
		m.Accessed(d[1], 3)
		m.Accessed(d[0], 1)
		m.Accessed(d[1], 3)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		m.Accessed(d[0], 2)
		if want := []node.Access{access("b", 3), access("a", 1)}; !slices.Equal(f.reported, want) {
			t.Errorf("reported %v", f.reported)
		}
		ended()
		ended()
		if len(m.mounts) != 0 {
			t.Error("the mount is looked after still")
		}
		m.Close()
	})
}

func TestShortLife(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{}
		m := New(Options{Filler: f, Profiles: f, Learn: true, Background: true})
		defer m.Close()
		ended := m.Mounted(Mount{Image: img, Devices: d})
		m.Accessed(d[0], 1)
		synctest.Wait()
		ended()
		if !slices.Equal(f.reported, []node.Access{access("a", 1)}) {
			t.Errorf("reported %v", f.reported)
		}
		m.Mounted(Mount{Image: img, Devices: d})() // nothing was read
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := f.did(); slices.Contains(got, "complete a") {
			t.Errorf("after the end: %q", got)
		}
	})
}

func TestWhatIsLeftOut(t *testing.T) {
	for what, change := range map[string]func(*Options, *Mount, *testing.T){
		"no learning":    func(o *Options, _ *Mount, _ *testing.T) { o.Learn = false },
		"unknown image":  func(_ *Options, x *Mount, _ *testing.T) { x.Image = "" },
		"adopted":        func(_ *Options, x *Mount, _ *testing.T) { x.Adopted = true },
		"not completed":  func(o *Options, _ *Mount, _ *testing.T) { o.Learn, o.Background = false, false },
		"complete":       func(_ *Options, x *Mount, t *testing.T) { fillAll(t, x.Devices) },
		"without device": func(_ *Options, x *Mount, _ *testing.T) { x.Devices = nil },
	} {
		t.Run(what, func(t *testing.T) {
			withDevices(t, func(t *testing.T, d []*device.Device) {
				f := &fake{profile: []node.Access{access("a", 2)}}
				o, x := Options{Filler: f, Profiles: f, Learn: true, Background: true}, Mount{Image: img, Devices: d}
				change(&o, &x, t)
				m := New(o)
				ended := m.Mounted(x)
				m.Accessed(d[0], 1)
				time.Sleep(time.Hour)
				ended()
				m.Close()
				want := []string{"complete b", "complete a"}
				if !o.Background || allComplete(x.Devices) {
					want = nil
				}
				if got := f.did(); !slices.Equal(got, want) {
					t.Errorf("did %q", got)
				}
			})
		})
	}
}

func fillAll(t *testing.T, d []*device.Device) {
	t.Helper()
	for _, x := range d {
		for i := range groups {
			if err := x.Write(i, plain(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDaemonIsDown(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{err: errors.New("down")}
		m := New(Options{Filler: f, Profiles: f, Learn: true, Background: true})
		ended := m.Mounted(Mount{Image: img, Devices: d})
		m.Accessed(d[0], 1)
		time.Sleep(time.Hour)
		ended()
		m.Close()
		if got, want := f.did(), []string{"profile", "complete b", "complete a", "report"}; !slices.Equal(got, want) {
			t.Errorf("did %q", got)
		}
	})
}

func TestDaemonHangs(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{wait: func(ctx context.Context, _ string) { <-ctx.Done() }}
		m := New(Options{Filler: f, Profiles: f, Learn: true})
		begin := time.Now()
		ended := m.Mounted(Mount{Image: img, Devices: d})
		m.Accessed(d[0], 1)
		synctest.Wait()
		ended()
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("the end took %s", took)
		}
		m.Close()
	})
}

func TestCloseEndsEverything(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{profile: []node.Access{access("a", 2)}, wait: func(ctx context.Context, what string) {
			if what != "profile" && what != "report" {
				<-ctx.Done()
			}
		}}
		m := New(Options{Filler: f, Profiles: f, Learn: true, Background: true})
		ended := m.Mounted(Mount{Image: img, Devices: d})
		m.Mounted(Mount{Image: img, Devices: d}) // nobody ends it
		m.Refill(d[0], []int{1})
		time.Sleep(time.Minute)
		m.Close()
		ended()
		before := len(f.did())
		m.Mounted(Mount{Image: img, Devices: d})()
		m.Refill(d[0], []int{1})
		m.Accessed(d[0], 1)
		synctest.Wait()
		if got := f.did(); len(got) != before {
			t.Errorf("after the end: %q", got[before:])
		}
	})
}

func TestFailureOfOneDevice(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{fail: func(x *device.Device, _ int) error {
			if x == d[0] {
				return errors.New("no origin")
			}
			return nil
		}}
		for i := range groups {
			f.profile = append(f.profile, access("a", i), access("b", i))
		}
		failing, others := make(chan struct{}), make(chan struct{})
		f.wait = func(_ context.Context, what string) {
			switch {
			case strings.HasPrefix(what, "prefetch a"):
				<-failing
			case what != "profile":
				<-others
			}
		}
		m := New(Options{Filler: f, Profiles: f, Learn: true})
		ended := m.Mounted(Mount{Image: img, Devices: d})
		synctest.Wait()
		if f.most != fetchers {
			t.Errorf("%d parts at a time", f.most)
		}
		close(failing)
		synctest.Wait()
		close(others)
		synctest.Wait()
		if f.calls[d[0]] > fetchers/2 || f.calls[d[1]] != groups {
			t.Errorf("%v", f.did())
		}
		ended()
		m.Close()
	})
}

func TestProfileOfGarbage(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		var p []node.Access
		p = append(p, access("x", 0), node.Access{}, access("a", -1), access("a", groups), access("a", 1<<40), access("b", 1), access("b", 1))
		for range 3 * maxAccesses {
			p = append(p, access("a", 0), access("b", 1))
		}
		got := runs(p, d)
		if len(got) != 2 || !slices.Equal(got[0].groups, []int{1}) || !slices.Equal(got[1].groups, []int{0}) {
			t.Errorf("runs %v", got)
		}
	})
}

func TestRecordingIsBounded(t *testing.T) {
	r := &recording{seen: map[place]bool{}, began: make(chan struct{})}
	for i := range 3 * maxAccesses {
		r.add(place{nil, i})
	}
	if len(r.order) != maxAccesses || len(r.seen) != maxAccesses {
		t.Errorf("%d accesses", len(r.order))
	}
}

func TestRefillGoesOn(t *testing.T) {
	withDevices(t, func(t *testing.T, d []*device.Device) {
		f := &fake{fill: true, fail: func(_ *device.Device, n int) error {
			if n < 5 {
				return errors.New("down")
			}
			return nil
		}}
		m := New(Options{Filler: f, Profiles: f})
		m.Refill(d[0], []int{1}) // it is not mounted
		ended := m.Mounted(Mount{Devices: d[:1]})
		m.Refill(d[1], []int{1}) // nor is this
		lost := []int{1, 2}
		m.Refill(d[0], lost)
		lost[0] = 99
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := f.did(); len(got) != 5 || !d[0].Has(1) || !d[0].Has(2) {
			t.Errorf("did %q", got)
		}
		f.fail = func(*device.Device, int) error { return errors.New("down") }
		m.Refill(d[0], []int{3})
		synctest.Wait()
		ended()
		m.Close()
	})
}
