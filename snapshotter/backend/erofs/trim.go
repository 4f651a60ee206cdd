package erofs

import (
	"errors"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/snapshotter/device"
)

// The kernel caches what is read through EROFS twice: as pages of the file in the
// mount, which are used again, and as pages of the device, which are not. Until a
// device is complete it is read through the cache nevertheless, where what has just
// come is; its pages are given back soon after.
const (
	// trimEvery is how often they are.
	trimEvery = 2 * time.Second
	// trimFrom is from how many bytes on it is worth it.
	trimFrom = 1 << 20
)

// trimmer gives pages of devices back to the kernel.
type trimmer struct{ users map[*device.Device]int } // guarded by Backend.mu

func (t *trimmer) add(devices []*device.Device) {
	for _, d := range devices {
		t.users[d]++
	}
}

func (t *trimmer) remove(devices []*device.Device) {
	for _, d := range devices {
		if t.users[d]--; t.users[d] <= 0 {
			delete(t.users, d)
		}
	}
}

// trim runs until the backend is closed.
func (b *Backend) trim() {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			return
		}
		b.mu.Lock()
		devices := maps.Clone(b.trimmer.users)
		b.mu.Unlock()
		for d := range devices {
			if err := dropPages(d.Writer()); err != nil && !errors.Is(err, os.ErrClosed) {
				b.o.Log.Warn("the pages of a device stay in memory", "device", d.Key(), "error", err)
				return
			}
		}
	}
}

// dropPages gives the clean pages of a file back if there are many.
func dropPages(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var trimErr error
	err = raw.Control(func(fd uintptr) {
		var cached unix.Cachestat_t
		trimErr = unix.Cachestat(uint(fd), &unix.CachestatRange{}, &cached, 0)
		switch {
		case errors.Is(trimErr, unix.ENOSYS): // before Linux 6.5
		case trimErr != nil, (cached.Cache-cached.Dirty)*uint64(os.Getpagesize()) < trimFrom: // #nosec G115 -- positive
			return
		}
		trimErr = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) // #nosec G115 -- a descriptor
	})
	return errors.Join(err, trimErr)
}
