package fdkeeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// partPrefix begins the names that systemd sees. After it come, separated by
// dots: stamp, bytes of metadata, number of files, which of them (0 is a memfd
// with the metadata), and the set's name.
const partPrefix = "damselfly."

// ErrNoStore says that no service manager offers to hold descriptors.
var ErrNoStore = errors.New("no systemd file descriptor store: NOTIFY_SOCKET is not set")

// part is one descriptor of a set, as systemd names it.
type part struct {
	name  string
	stamp uint64
	meta  int
	files int
	index int
}

func (p part) String() string {
	return fmt.Sprintf("%s%016x.%d.%d.%d.%s", partPrefix, p.stamp, p.meta, p.files, p.index, p.name)
}

func parsePart(s string) (part, bool) {
	rest, ok := strings.CutPrefix(s, partPrefix)
	fields := strings.SplitN(rest, ".", 5)
	if !ok || len(fields) != 5 {
		return part{}, false
	}
	stamp, err := strconv.ParseUint(fields[0], 16, 64)
	meta, err1 := strconv.Atoi(fields[1])
	files, err2 := strconv.Atoi(fields[2])
	index, err3 := strconv.Atoi(fields[3])
	p := part{name: fields[4], stamp: stamp, meta: meta, files: files, index: index}
	ok = errors.Join(err, err1, err2, err3, checkName(p.name)) == nil && p.String() == s &&
		meta >= 0 && meta <= MaxMeta && files >= 1 && files <= MaxFiles && index >= 0 && index <= files
	return p, ok
}

// Systemd holds sets in the service manager (sd_pid_notify_with_fds(3)), which
// hands them to the next process of the unit. The unit needs
// FileDescriptorStoreMax=, and FileDescriptorStorePreserve=yes for sets to
// outlive a stop. Beyond that maximum systemd lets go of descriptors without
// saying so; where it tells the maximum ($FDSTORE, systemd 254), Put refuses
// instead.
//
// Get returns only what was inherited: there is no way to ask systemd.
type Systemd struct {
	notify string
	limit  int // 0 is unknown

	mu     sync.Mutex
	stored map[string]part // any part of the set that systemd has
	fds    int
	// inherited are the sets that this process was started with.
	inherited map[string]Set
}

var _ Holder = (*Systemd)(nil)

// NewSystemd returns a holder with the sets among inherited, and what else
// there is. What is left of sets that were not stored entirely, or replaced, is
// dropped. The error wraps ErrNoStore if there is no store; then rest is all.
func NewSystemd(ctx context.Context, inherited []Inherited, getenv func(string) string) (s *Systemd, rest []Inherited, err error) {
	s = &Systemd{
		notify: getenv("NOTIFY_SOCKET"), stored: make(map[string]part), inherited: make(map[string]Set),
	}
	if s.notify == "" {
		return nil, inherited, ErrNoStore
	}
	if limit := getenv("FDSTORE"); limit != "" {
		if s.limit, err = strconv.Atoi(limit); err != nil {
			return nil, inherited, fmt.Errorf("read $FDSTORE: %w", err)
		}
	}
	groups := make(map[part][]Inherited)
	for _, in := range inherited {
		if p, ok := parsePart(in.Name); ok {
			p.index = 0
			groups[p] = append(groups[p], in)
		} else {
			rest = append(rest, in)
		}
	}
	for p, parts := range groups {
		if err := s.adopt(ctx, p, parts); err != nil {
			return s, rest, err
		}
	}
	return s, rest, nil
}

// adopt takes one set over, or drops it.
func (s *Systemd) adopt(ctx context.Context, p part, parts []Inherited) error {
	set, ok := assemble(p, parts)
	old, has := s.stored[p.name]
	switch {
	case !ok || has && old.stamp >= p.stamp:
		return errors.Join(closeInherited(parts), s.remove(ctx, p))
	case has:
		if err := errors.Join(s.inherited[p.name].Close(), s.remove(ctx, old)); err != nil {
			return err
		}
		s.fds -= old.count()
	}
	s.stored[p.name], s.inherited[p.name] = p, set
	s.fds += p.count()
	return nil
}

// count is how many descriptors a set takes in the store.
func (p part) count() int { return p.files + min(p.meta, 1) }

// first is the index of the first part that exists.
func (p part) first() int { return 1 - min(p.meta, 1) }

// assemble returns false if not all parts are there.
func assemble(p part, parts []Inherited) (Set, bool) {
	files := make([]*os.File, p.files+1)
	for _, in := range parts {
		q, _ := parsePart(in.Name)
		if files[q.index] != nil {
			return Set{}, false
		}
		files[q.index] = in.File
	}
	if slices.Index(files[p.first():], nil) >= 0 || p.meta == 0 && files[0] != nil {
		return Set{}, false
	}
	set := Set{Name: p.name, Stamp: p.stamp, Files: files[1:]}
	if p.meta > 0 {
		set.Meta = make([]byte, p.meta)
		if n, err := files[0].ReadAt(set.Meta, 0); n != p.meta || err != nil {
			return Set{}, false
		}
		_ = files[0].Close() // it was read entirely
	}
	return set, true
}

func closeInherited(parts []Inherited) error {
	var errs []error
	for _, in := range parts {
		errs = append(errs, in.File.Close())
	}
	return errors.Join(errs...)
}

// Put has systemd hold set. The new one is stored before the old one is removed.
func (s *Systemd) Put(ctx context.Context, set Set) error {
	if err := checkSet(set); err != nil {
		return fmt.Errorf("put %q: %w", set.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, has := s.stored[set.Name]
	if has && old.stamp == set.Stamp {
		return nil
	}
	if has && old.stamp > set.Stamp {
		return fmt.Errorf("put %q: %w", set.Name, ErrStale)
	}
	p := part{name: set.Name, stamp: set.Stamp, meta: len(set.Meta), files: len(set.Files)}
	if s.limit > 0 && s.fds+p.count() > s.limit {
		return fmt.Errorf("put %q: systemd holds %d descriptors of at most %d: %w", set.Name, s.fds, s.limit, ErrFull)
	}
	if err := s.store(ctx, p, set); err != nil {
		return errors.Join(fmt.Errorf("put %q: %w", set.Name, err), s.remove(ctx, p))
	}
	s.stored[set.Name] = p
	s.fds += p.count()
	if has {
		return s.forget(ctx, old)
	}
	return nil
}

func (s *Systemd) store(ctx context.Context, p part, set Set) error {
	files := set.Files
	if p.meta > 0 {
		meta, err := metaFile(set.Meta)
		if err != nil {
			return err
		}
		defer meta.Close() //nolint:errcheck // systemd has its own
		files = append([]*os.File{meta}, files...)
	}
	p.index = p.first()
	return withFDs(files, func(fds []int) error {
		n, err := newNotifier(ctx, s.notify)
		if err != nil {
			return err
		}
		defer n.close()
		for _, fd := range fds {
			// Without FDPOLL=0 systemd lets go of what polls as hung up.
			if err := n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+p.String(), fd); err != nil {
				return err
			}
			p.index++
		}
		return n.barrier()
	})
}

func metaFile(meta []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("damselfly-fdkeeper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memfd for metadata: %w", err)
	}
	f := os.NewFile(uintptr(fd), "metadata")
	if _, err := f.Write(meta); err != nil {
		return nil, errors.Join(fmt.Errorf("write metadata: %w", err), f.Close())
	}
	return f, nil
}

// remove has systemd close the parts of a set.
func (s *Systemd) remove(ctx context.Context, p part) error {
	n, err := newNotifier(ctx, s.notify)
	if err != nil {
		return err
	}
	defer n.close()
	for p.index = 0; p.index <= p.files; p.index++ {
		if err := n.send("FDSTOREREMOVE=1\nFDNAME=" + p.String()); err != nil {
			return err
		}
	}
	return n.barrier()
}

// forget removes what was stored as p. mu is held.
func (s *Systemd) forget(ctx context.Context, p part) error {
	err := s.inherited[p.name].Close()
	delete(s.inherited, p.name)
	s.fds -= p.count()
	return errors.Join(err, s.remove(ctx, p))
}

// Get returns duplicates of an inherited set.
func (s *Systemd) Get(_ context.Context, name string) (Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set, ok := s.inherited[name]
	if !ok {
		return Set{}, fmt.Errorf("get %q: not inherited from systemd: %w", name, ErrNotFound)
	}
	var fds []int
	err := withFDs(set.Files, func(from []int) error {
		for _, fd := range from {
			second, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return err
			}
			fds = append(fds, second)
		}
		return nil
	})
	if err != nil {
		closeAll(fds)
		return Set{}, fmt.Errorf("get %q: %w", name, err)
	}
	set.Meta, set.Files = slices.Clone(set.Meta), newFiles(name, fds)
	return set, nil
}

// List returns what systemd was given and has not been told to drop.
func (s *Systemd) List(context.Context) ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := make([]Entry, 0, len(s.stored))
	for _, p := range s.stored {
		entries = append(entries, Entry{Name: p.name, Stamp: p.stamp, Files: p.files})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// Drop has systemd close a set.
func (s *Systemd) Drop(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.stored[name]
	if !ok {
		return nil
	}
	if err := s.remove(ctx, p); err != nil {
		return fmt.Errorf("drop %q: %w", name, err)
	}
	err := s.inherited[name].Close()
	delete(s.inherited, name)
	delete(s.stored, name)
	s.fds -= p.count()
	return err
}

// Close closes what this process inherited. systemd keeps what it holds.
func (s *Systemd) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, set := range s.inherited {
		errs = append(errs, set.Close())
	}
	clear(s.inherited)
	return errors.Join(errs...)
}
