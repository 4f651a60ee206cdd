package profile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/state"
)

// Bounds of what is kept.
const (
	// MaxAccesses bounds a report and a profile.
	MaxAccesses = 4096
	// MaxGroup is the largest number of a group.
	MaxGroup = task.MaxPieces - 1
	// maxReports is how many reports of an image count, the latest.
	maxReports = 5
)

// ErrInvalid is returned for a report that breaks the bounds.
var ErrInvalid = errors.New("invalid access report")

// Buckets of the state store: the reports, and when an image was used last. An
// image is in the second as long as it is in the first.
const (
	bucketReports = "profiles"
	bucketUsed    = "profiles-used"
)

// Options configures a Store. State is required.
type Options struct {
	State state.Store
	Log   *slog.Logger
	Now   func() time.Time
	// Images is how many images are known at a time; default 10,000.
	Images int
	// FlushEvery is how often what is new is written; default 5 s.
	FlushEvery time.Duration
}

// Store keeps profiles. It is safe for concurrent use.
type Store struct {
	o Options

	mu     sync.Mutex
	used   map[string]time.Time // last use, by image
	loaded map[string]*image    // of the images, those in memory
}

// image is what is known of one image.
type image struct {
	reports [][]Access
	merged  []Access // nil until somebody asks
	dirty   bool     // not written yet
}

// maxLoaded bounds the images in memory that are written.
const maxLoaded = 256

// usedEvery is how exactly the last use is kept across restarts.
const usedEvery = time.Hour

// Open returns a store of what is in o.State. Run must write what is new.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Images <= 0 {
		o.Images = 10_000
	}
	if o.FlushEvery <= 0 {
		o.FlushEvery = 5 * time.Second
	}
	s := &Store{o: o, used: map[string]time.Time{}, loaded: map[string]*image{}}
	err := o.State.ForEach(bucketUsed, func(key string, value []byte) error {
		if len(value) == 8 {
			s.used[key] = time.Unix(int64(binary.BigEndian.Uint64(value)), 0) // #nosec G115 -- written by this package
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading profiles: %w", err)
	}
	return s, nil
}

// Run writes what is new until ctx ends, and then once more.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(s.o.FlushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.Flush(); err != nil {
				s.o.Log.Warn("profiles are not kept", "error", err)
			}
		case <-ctx.Done():
			return s.Flush()
		}
	}
}

// checkImage refuses what names no image.
func checkImage(name string) error {
	id, err := task.ParseID(name)
	if err != nil {
		return fmt.Errorf("%w: image %q: want the manifest's sha256:<hex>", ErrInvalid, clip(name))
	}
	if _, ok := id.Digest(); !ok {
		return fmt.Errorf("%w: image %q: want the manifest's sha256:<hex>", ErrInvalid, clip(name))
	}
	return nil
}

func clip(s string) string { return s[:min(len(s), 100)] }

// Report adds what one mount of an image read, in order of first use.
func (s *Store) Report(name string, report []Access) error {
	if err := checkImage(name); err != nil {
		return err
	}
	if len(report) == 0 || len(report) > MaxAccesses {
		return fmt.Errorf("%w: %d accesses, want 1 to %d", ErrInvalid, len(report), MaxAccesses)
	}
	seen := make(map[Access]bool, len(report))
	kept := make([]Access, 0, len(report))
	for _, a := range report {
		if a.Group > MaxGroup {
			return fmt.Errorf("%w: group %d, at most %d", ErrInvalid, a.Group, MaxGroup)
		}
		if !seen[a] {
			seen[a] = true
			kept = append(kept, a)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.loadLocked(name)
	if err != nil {
		return err
	}
	if len(im.reports) == maxReports {
		im.reports = im.reports[1:]
	}
	im.reports = append(im.reports, kept)
	im.merged, im.dirty = nil, true
	s.used[name] = s.o.Now()
	return nil
}

// Profile returns the profile of an image and of how many reports it is made;
// none of an image that nobody has reported. It is not to be changed.
func (s *Store) Profile(name string) (accesses []Access, reports int, err error) {
	if err := checkImage(name); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.used[name]; !known {
		return nil, 0, nil
	}
	im, err := s.loadLocked(name)
	if err != nil {
		return nil, 0, err
	}
	if im.merged == nil {
		im.merged = Merge(im.reports, MaxAccesses)
	}
	if now := s.o.Now(); now.Sub(s.used[name]) > usedEvery {
		s.used[name], im.dirty = now, true
	}
	return im.merged, len(im.reports), nil
}

// loadLocked returns what is known of an image.
func (s *Store) loadLocked(name string) (*image, error) {
	if im := s.loaded[name]; im != nil {
		return im, nil
	}
	im := &image{}
	value, err := s.o.State.Get(bucketReports, name)
	switch {
	case errors.Is(err, state.ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("reading the profile of %s: %w", name, err)
	default:
		if im.reports, err = decode(value); err != nil {
			s.o.Log.Warn("a profile is begun anew", "image", name, "error", err)
			im.reports = nil
		}
	}
	for k, other := range s.loaded {
		if len(s.loaded) < maxLoaded {
			break
		}
		if !other.dirty {
			delete(s.loaded, k)
		}
	}
	s.loaded[name] = im
	return im, nil
}

// record is one image to be written.
type record struct {
	name  string
	used  time.Time
	value []byte
}

// Flush writes what is new, and forgets images beyond the bound.
func (s *Store) Flush() error {
	records, forgotten := s.news()
	for i, r := range records {
		var used [8]byte
		binary.BigEndian.PutUint64(used[:], uint64(r.used.Unix())) // #nosec G115 -- a time of now
		err := s.o.State.Put(bucketUsed, r.name, used[:])
		if err == nil {
			err = s.o.State.Put(bucketReports, r.name, r.value)
		}
		if err != nil {
			s.again(records[i:])
			return fmt.Errorf("writing the profile of %s: %w", r.name, err)
		}
	}
	for _, name := range forgotten {
		err := s.o.State.Delete(bucketReports, name)
		if err == nil {
			err = s.o.State.Delete(bucketUsed, name)
		}
		if err != nil {
			return fmt.Errorf("forgetting the profile of %s: %w", name, err)
		}
	}
	return nil
}

// news takes what is to be written and what is to be forgotten.
func (s *Store) news() (records []record, forgotten []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	forgotten = oldest(s.used, len(s.used)-s.o.Images)
	for _, name := range forgotten {
		delete(s.used, name)
		delete(s.loaded, name)
	}
	for name, im := range s.loaded {
		if im.dirty {
			records = append(records, record{name, s.used[name], encode(im.reports)})
			im.dirty = false
		}
	}
	return records, forgotten
}

// again marks what could not be written.
func (s *Store) again(records []record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		if im := s.loaded[r.name]; im != nil {
			im.dirty = true
		}
	}
}
