package authority

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/damselfly-io/damselfly/dfdaemon/engine"
	"github.com/damselfly-io/damselfly/dfdaemon/grant"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/upstream"
)

// ErrInvalid is returned for what is no name of a repository.
var ErrInvalid = errors.New("invalid name of a repository")

// ErrNotAllowed is returned for a registry that is not on the allow-list.
var ErrNotAllowed = errors.New("registry is not allowed")

// Options configures an Authority. Registries, Grants and Exchange are required.
type Options struct {
	Registries *upstream.List
	Grants     *grant.Store
	// Exchange performs small registry requests through the supernode.
	Exchange Exchanger
	// Keychain has the node's configured credentials; nil: there are none.
	Keychain origin.Keychain
	// Origin configures the client that logs in to registries. Its Transport
	// is used where no supernode is reachable, and for token servers; its
	// Keychain is not used.
	Origin origin.Options
	Now    func() time.Time
	// YesTTL is how long the registry's yes to a credential counts for a
	// repository; default 60 s.
	YesTTL time.Duration
	// HeldTTL is how long the credential of a client is kept after the registry
	// has accepted it; default 12 h.
	HeldTTL time.Duration
}

// Authority decides what the node reads with. It is safe for concurrent use.
type Authority struct {
	o      Options
	client *origin.Client

	mu   sync.Mutex
	held map[string]heldCredential // by repository
	yes  map[string]time.Time      // until when, by repository and credential
}

type heldCredential struct {
	cred  origin.Credential
	until time.Time
}

// New returns an authority.
func New(o Options) *Authority {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.YesTTL == 0 {
		o.YesTTL = 60 * time.Second
	}
	if o.HeldTTL == 0 {
		o.HeldTTL = 12 * time.Hour
	}
	return &Authority{o: o, client: newClient(o), held: map[string]heldCredential{}, yes: map[string]time.Time{}}
}

// Repository is a repository of an allowed registry.
type Repository struct {
	Registry, Name string
	// Base is the URL that the registry is reached at.
	Base string
}

// key is the repository as part of a map's key. Two names of one upstream are
// two registries: they may be reached with different rights.
func (r Repository) key() string { return r.Registry + "\x00" + r.Base + "\x00" + r.Name }

// Repository finds a repository of a registry, by the name that users write.
// ErrNotAllowed if the registry is not on the allow-list. The name becomes a part
// of URLs: it must be one.
func (a *Authority) Repository(registry, name string) (Repository, error) {
	if !upstream.ValidRepository(name) {
		return Repository{}, fmt.Errorf("%w: %q", ErrInvalid, name)
	}
	base, ok := a.o.Registries.Of(registry)
	if !ok {
		return Repository{}, fmt.Errorf("%w: %q is not mirrored here: add it to dfdaemon's allow-registry (--allow-registry %s)", ErrNotAllowed, registry, registry)
	}
	return Repository{Registry: registry, Name: name, Base: base}, nil
}

// maxEntries bounds the tables; the oldest half, roughly, goes when one is full.
const maxEntries = 10_000

// Accepted notes that the registry has let c in to r.
func (a *Authority) Accepted(r Repository, c origin.Credential) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.Now()
	if c != (origin.Credential{}) && c.Authorization != "" { // the configured ones are looked up each time
		makeRoom(a.held, func(h heldCredential) bool { return now.After(h.until) })
		a.held[r.key()] = heldCredential{c, now.Add(a.o.HeldTTL)}
	}
	makeRoom(a.yes, now.After)
	a.yes[yesKey(r, c)] = now.Add(a.o.YesTTL)
}

func yesKey(r Repository, c origin.Credential) string { return r.key() + "\x00" + c.Key() }

// makeRoom drops what is over, and others if that is not enough.
func makeRoom[V any](m map[string]V, over func(V) bool) {
	if len(m) < maxEntries {
		return
	}
	for k, v := range m {
		if over(v) || len(m) > maxEntries/2 {
			delete(m, k)
		}
	}
}

// Refused notes that the registry does not let c in to r.
func (a *Authority) Refused(r Repository, c origin.Credential) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.yes, yesKey(r, c))
	if a.held[r.key()].cred == c {
		delete(a.held, r.key())
	}
}

// Attempt is one way to read a repository.
type Attempt struct {
	Repository
	Credential origin.Credential
	// Settled: that the node may read is known; the origin need not be asked.
	Settled bool
}

// Try calls use with one way to read r after another, until one is not refused.
// For a blob, id says which; otherwise it is empty. It returns what use returned
// for the first way, which is the best informed, if all were refused. What use
// has learned it tells itself: by Accepted.
func (a *Authority) Try(ctx context.Context, r Repository, id task.ID, use func(Attempt) error) error {
	credentials, keyErr := a.credentials(ctx, r)
	covered := id != "" && a.o.Grants.Covers(r.Registry, r.Name, id, "", true)
	var first error
	for _, c := range credentials {
		err := use(Attempt{Repository: r, Credential: c, Settled: covered || a.accepted(r, c)})
		if err == nil {
			return nil
		}
		status := refusal(err)
		if status == http.StatusUnauthorized || status == http.StatusForbidden {
			a.Refused(r, c)
		}
		if first == nil {
			first = err
		}
		// Registries answer 404 to those who may not know that there is something.
		if status == 0 || status == http.StatusNotFound && a.accepted(r, c) || ctx.Err() != nil {
			return err
		}
	}
	if keyErr != nil {
		return fmt.Errorf("%w; and no configured credential can be used: %w", first, keyErr)
	}
	return first
}

// refusal returns the status by which an origin has refused a credential, 0 if
// err is of another kind.
func refusal(err error) int {
	var (
		f      *engine.Failure
		answer *origin.StatusError
		status int
	)
	switch {
	case errors.As(err, &f):
		status = f.Status
	case errors.As(err, &answer) && !answer.Redirected: // not of the registry's storage
		status = answer.Status
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return status
	}
	return 0
}

// credentials lists what to read r with. It ends with none. An error is about
// the configured credential, which is then missing.
func (a *Authority) credentials(ctx context.Context, r Repository) (list []origin.Credential, err error) {
	a.mu.Lock()
	if h, ok := a.held[r.key()]; ok && a.o.Now().Before(h.until) {
		list = append(list, h.cred)
	}
	a.mu.Unlock()
	if a.o.Keychain != nil {
		var c origin.Credential
		var ok bool
		if c, ok, err = a.configured(ctx, r); ok && err == nil {
			list = append(list, c)
		}
	}
	return append(list, origin.Credential{}), err
}

// configured returns the keychain's credential for the server that r is read
// from.
func (a *Authority) configured(ctx context.Context, r Repository) (origin.Credential, bool, error) {
	u, err := url.Parse(r.Base)
	if err != nil {
		return origin.Credential{}, false, fmt.Errorf("upstream of %s: %w", r.Registry, err)
	}
	return a.o.Keychain.Resolve(ctx, u.Host)
}

// accepted reports whether the registry has let c in to r a short time ago.
func (a *Authority) accepted(r Repository, c origin.Credential) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.o.Now().Before(a.yes[yesKey(r, c)])
}

// Open opens the blob that req names by ID, in r. Whoever asks may read what the
// node holds. The attempt is the one by which req was opened.
func (a *Authority) Open(ctx context.Context, e *engine.Engine, at Attempt, req engine.Request) (*engine.Handle, error) {
	req.URL = origin.BlobURL(at.Base, at.Name, string(req.ID))
	req.Credential, req.Authorized = at.Credential, at.Settled
	h, err := e.Open(ctx, req)
	if err == nil && !at.Settled {
		a.Accepted(at.Repository, at.Credential) // by the answer to this very request
	}
	if errors.Is(err, engine.ErrUnsettled) { // it is here, or on its way here
		req.Authorized = true
		h, err = e.Open(ctx, req)
	}
	return h, err
}
