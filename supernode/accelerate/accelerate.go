package accelerate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/state"
)

// ErrNotFound is returned by Remove for an image that is not accelerated.
var ErrNotFound = errors.New("no such accelerated image")

// Options configures an Accelerator. Dir, State, Store and Origin are required,
// and Use has to be called before anything is converted.
type Options struct {
	// Dir has the key, and the files of conversions under way. It belongs to the
	// Accelerator.
	Dir   string
	State state.Store
	// Store is that of the cache.
	Store *piecestore.Store
	// Origin reads manifests.
	Origin *origin.Client
	// Repositories are those whose images are converted when they are pulled:
	// HOST/REPO, HOST/PREFIX/* or HOST/*. Default: none.
	Repositories []string
	// Registry returns the name of the registry at a URL, if it is another than
	// the URL's host. Default: it never is.
	Registry func(baseURL string) (name string, ok bool)
	// Workers is how many images are converted at a time; default 1.
	Workers int
	// Memory bounds the buffers of one conversion, in bytes; default 192 MiB.
	Memory int64
	// Timeout of one conversion, without the time that it waits for its turn;
	// default 1 h.
	Timeout time.Duration
	// Retry is how long an image of Repositories that could not be converted is
	// not tried again when it is pulled; default 1 h.
	Retry time.Duration
	// Push sends indexes to the image's repository as well, with the
	// credentials in Keychain.
	Push     bool
	Keychain origin.Keychain
	// Observe is told of each conversion's end. Default: nobody is.
	Observe func(err error, took time.Duration)
	Now     func() time.Time
	Log     *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Registry == nil {
		o.Registry = func(string) (string, bool) { return "", false }
	}
	if o.Observe == nil {
		o.Observe = func(error, time.Duration) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Workers = cmp.Or(max(o.Workers, 0), 1)
	o.Memory = cmp.Or(max(o.Memory, 0), 192<<20)
	o.Timeout = cmp.Or(max(o.Timeout, 0), time.Hour)
	o.Retry = cmp.Or(max(o.Retry, 0), time.Hour)
}

// Image names the manifest of an image, for one platform, in a registry.
type Image struct {
	Base string // URL of the registry, without /v2/
	Repo string
	// Digest of the manifest.
	Digest string
	// Credential to read it with; the zero one is the supernode's own.
	Credential origin.Credential
	// OwnToo lets the supernode's own be tried after Credential was refused.
	OwnToo bool
}

// Info describes an accelerated image.
type Info struct {
	// Image is REGISTRY/REPO@DIGEST, as the supernode reaches it.
	Image string `json:"image"`
	// Digest of the image's manifest, and Index that of the artifact.
	Digest string `json:"digest"`
	Index  string `json:"index"`
	// Key is the ID of the key that signed.
	Key string `json:"key"`
	// Blobs is how many the index needs besides the image's own layers, itself
	// included, and Bytes their size.
	Blobs     int       `json:"blobs"`
	Bytes     int64     `json:"bytes"`
	CreatedAt time.Time `json:"created_at"`
	// Pushed says that the registry has it too; PushError why it has not
	// although it should.
	Pushed    bool   `json:"pushed"`
	PushError string `json:"push_error,omitempty"`
}

func (r *record) info() Info {
	return Info{
		Image:  r.place().String() + "@" + r.Subject.Digest.String(),
		Digest: r.Subject.Digest.String(), Index: r.artifactDesc.Digest.String(), Key: r.Key,
		Blobs: len(r.Blobs), Bytes: r.bytes(), CreatedAt: r.Created, Pushed: r.Pushed, PushError: r.PushError,
	}
}

// Accelerator converts images and offers their indexes. Its methods are safe
// for concurrent use, once Use has been called.
type Accelerator struct {
	// Set once.
	o        Options
	key      *trust.PrivateKey
	patterns []pattern
	cache    *cdn.Cache
	slots    chan struct{}
	queue    chan Image    // of images that were pulled
	nudge    chan struct{} // room for one: dropped is not empty

	saving sync.Mutex // of changes to the store; taken before mu

	mu      sync.Mutex
	table   *table
	flights map[imageKey]*flight
	pending map[imageKey]time.Time // queued or failed: not to be queued before
	dropped []drop
}

// drop is what remains to be done for a record that is not offered any more.
type drop struct {
	rec    *record
	unused []task.ID
}

// flight is a conversion under way. info and err are set before done is closed.
type flight struct {
	done chan struct{}
	info Info
	err  error
}

// maxQueue bounds the images that wait; others are queued when they are pulled
// again.
const maxQueue = 1024

// New returns an accelerator that knows the images in o.State. It makes the key
// if there is none, removes what a conversion left behind that died with the
// process, and starts nothing.
func New(o Options) (*Accelerator, error) {
	o.setDefaults()
	patterns, err := parsePatterns(o.Repositories)
	if err != nil {
		return nil, err
	}
	a := &Accelerator{
		o: o, patterns: patterns, slots: make(chan struct{}, o.Workers), queue: make(chan Image, maxQueue), nudge: make(chan struct{}, 1),
		table: newTable(), flights: map[imageKey]*flight{}, pending: map[imageKey]time.Time{},
	}
	var created bool
	if a.key, created, err = trust.LoadOrCreate(filepath.Join(o.Dir, "key.pem")); err != nil {
		return nil, err
	}
	if created {
		o.Log.Info("made the key that signs indexes", "key", a.key.ID(), "file", filepath.Join(o.Dir, "key.pem"))
	}
	if err := os.RemoveAll(a.work()); err != nil {
		return nil, fmt.Errorf("emptying %s: %w", a.work(), err)
	}
	if err := os.MkdirAll(a.work(), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory for conversions: %w", err)
	}
	held := o.Store.List()
	if err := a.load(held); err != nil {
		return nil, fmt.Errorf("reading the accelerated images: %w", err)
	}
	a.sweep(held)
	return a, nil
}

// Use sets the cache that images are read through and indexes are kept in. The
// cache's StandIn is the Accelerator's, which is why it comes later.
func (a *Accelerator) Use(c *cdn.Cache) { a.cache = c }

func (a *Accelerator) work() string { return filepath.Join(a.o.Dir, "work") }

// PublicKey returns what nodes are to trust, as PEM.
func (a *Accelerator) PublicKey() ([]byte, error) { return a.key.Public().MarshalPEM() }

// sourcePrefix begins the source of tasks that were made here.
const sourcePrefix = "accelerated "

// sweep removes what is in the store of conversions that did not come to their
// end.
func (a *Accelerator) sweep(held []piecestore.Info) {
	for _, i := range held {
		if strings.HasPrefix(i.Source, sourcePrefix) && a.table.blobs[i.ID] == nil {
			a.discard([]task.ID{i.ID})
		}
	}
}

// discard removes blobs from the cache that were made here and are of no use any
// more. What is in use stays, for the cache to evict.
func (a *Accelerator) discard(ids []task.ID) {
	for _, id := range ids {
		t, ok := a.o.Store.Get(id)
		if !ok {
			continue
		}
		ours := strings.HasPrefix(t.Source(), sourcePrefix)
		t.Release()
		if !ours {
			continue
		}
		if err := a.o.Store.Remove(id); err != nil && !errors.Is(err, piecestore.ErrNotFound) && !errors.Is(err, piecestore.ErrInUse) {
			a.o.Log.Warn("a blob that is not needed any more stays in the cache", "task", id.Short(), "error", err)
		}
	}
}

// complete reports whether the cache has all blobs of r, and marks them as used,
// which Store.Get does.
func (a *Accelerator) complete(r *record) bool {
	for _, b := range r.Blobs {
		t, ok := a.o.Store.Get(b.ID)
		if !ok && b.ID != emptyID {
			return false
		}
		if !ok {
			continue
		}
		whole := t.Complete()
		t.Release()
		if !whole && b.ID != emptyID {
			return false
		}
	}
	return true
}

// Removed takes the indexes back that need a blob which the cache has dropped,
// or lost some of. It may be called for any task, from any goroutine.
func (a *Accelerator) Removed(id task.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if id == emptyID {
		a.nudgeRun() // which puts it back
		return
	}
	for r := range a.table.blobs[id] {
		a.o.Log.Info("an accelerated image is not offered any more: the cache has dropped a blob of it",
			"repository", r.place().String(), "image", r.Subject.Digest.String(), "task", id.Short())
		a.dropLocked(r)
	}
}

// dropLocked ends the offer of r. Run does the rest.
func (a *Accelerator) dropLocked(r *record) {
	if a.table.images[r.key()] != r {
		return
	}
	a.dropped = append(a.dropped, drop{r, a.table.remove(r)})
	a.nudgeRun()
}

func (a *Accelerator) nudgeRun() {
	select {
	case a.nudge <- struct{}{}:
	default:
	}
}

// emptyID is the configuration of every artifact, which no index is worth less
// without, but whoever copies one wants.
var emptyID = task.ID(artifact.Empty().Digest)

// restock puts the configuration back that all artifacts share.
func (a *Accelerator) restock(ctx context.Context) error {
	a.mu.Lock()
	wanted := len(a.table.images) > 0
	a.mu.Unlock()
	if t, ok := a.o.Store.Get(emptyID); ok {
		wanted = wanted && !t.Complete()
		t.Release()
	}
	if !wanted {
		return nil
	}
	size := int64(len(artifact.EmptyConfig))
	return a.cache.Import(ctx, emptyID, task.Uniform(size), sourcePrefix+"images", strings.NewReader(artifact.EmptyConfig))
}

// takeDropped returns what was dropped since the last call.
func (a *Accelerator) takeDropped() []drop {
	a.mu.Lock()
	defer a.mu.Unlock()
	dropped := a.dropped
	a.dropped = nil
	return dropped
}

// forget removes what is left of records that are not offered any more.
func (a *Accelerator) forget(drops []drop) error {
	var errs []error
	for _, d := range drops {
		errs = append(errs, a.forgetOne(d))
	}
	return errors.Join(errs...)
}

func (a *Accelerator) forgetOne(d drop) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	again := a.table.images[d.rec.key()] != nil // converted again since
	unused := slices.DeleteFunc(d.unused, func(id task.ID) bool { return a.table.blobs[id] != nil })
	a.mu.Unlock()
	a.discard(unused)
	if again {
		return nil
	}
	if err := a.o.State.Delete(bucket, d.rec.key().String()); err != nil {
		return fmt.Errorf("forgetting the index of %s: %w", d.rec.place(), err)
	}
	return nil
}

// List returns the images whose indexes are offered, by name.
func (a *Accelerator) List() []Info {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]Info, 0, len(a.table.images))
	for _, r := range a.table.images {
		all = append(all, r.info())
	}
	slices.SortFunc(all, func(x, y Info) int { return cmp.Compare(x.Image, y.Image) })
	return all
}

// Remove takes back the indexes of an image, by the digest of its manifest, in
// all repositories, and frees what they take in the cache. The registry keeps
// what was pushed to it. ErrNotFound is returned if there are none.
func (a *Accelerator) Remove(image string) ([]Info, error) {
	d, err := digest.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("%w: %.100q is no digest", ErrNotFound, image)
	}
	var removed []Info
	var drops []drop
	a.mu.Lock()
	for k, r := range a.table.images {
		if k.subject == d {
			removed = append(removed, r.info())
			drops = append(drops, drop{r, a.table.remove(r)})
		}
	}
	a.mu.Unlock()
	if len(removed) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	return removed, a.forget(drops)
}

// Run converts the images that are pulled from listed repositories, until ctx
// ends. It returns after all work it started has ended, and is called once.
func (a *Accelerator) Run(ctx context.Context) error {
	var group errgroup.Group
	a.nudgeRun()
	for range a.o.Workers {
		group.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case img := <-a.queue:
					a.pulled(ctx, img)
				}
			}
		})
	}
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-a.nudge:
				if err := errors.Join(a.forget(a.takeDropped()), a.restock(ctx)); err != nil && ctx.Err() == nil {
					a.o.Log.Error("the accelerated images could not be brought up to date", "error", err)
				}
			}
		}
	})
	return group.Wait()
}

// pulled converts an image from the queue.
func (a *Accelerator) pulled(ctx context.Context, img Image) {
	_, err := a.Accelerate(ctx, img)
	key := imageKey{newPlace(img.Base, img.Repo), digest.Digest(img.Digest)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil || ctx.Err() != nil {
		delete(a.pending, key)
		return
	}
	a.pending[key] = a.o.Now().Add(a.o.Retry)
	a.o.Log.Warn("an image of a listed repository could not be accelerated", "repository", key.place.String(), "image", img.Digest, "error", err)
}

// enqueue has an image converted that was pulled, unless it was or is to be.
func (a *Accelerator) enqueue(img Image) {
	key := imageKey{newPlace(img.Base, img.Repo), digest.Digest(img.Digest)}
	now := a.o.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if until, ok := a.pending[key]; a.table.images[key] != nil || a.flights[key] != nil || ok && now.Before(until) {
		return
	}
	if len(a.pending) > 4*maxQueue {
		clear(a.pending)
	}
	select {
	case a.queue <- img:
		a.pending[key] = now.Add(a.o.Timeout)
	default:
	}
}

// listed reports whether a repository's images are to be converted when they
// are pulled.
func (a *Accelerator) listed(p place) bool {
	if len(a.patterns) == 0 {
		return false
	}
	host, ok := a.o.Registry(p.base)
	if !ok {
		host = p.host()
	}
	return slices.ContainsFunc(a.patterns, func(x pattern) bool { return x.matches(host, p.repo) })
}
