package lazy

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// Asked is an image that containerd has asked for.
type Asked struct {
	Reference string
	Manifest  digest.Digest
	At        time.Time
	// Reason is why it is not lazy; zero if it is.
	Reason snapshots.Reason
	// TrustedBy says who vouches for its index.
	TrustedBy string
}

// maxAsked bounds what Images.Asked returns.
const maxAsked = 1000

// asked keeps what became of images, for people who ask.
type asked struct {
	mu  sync.Mutex
	all map[string]Asked // by key
}

// note keeps the decision about a layer of an image, and returns it.
func (a *asked) note(r request, im *known, d snapshots.Decision, at time.Time) snapshots.Decision {
	x := Asked{Reference: r.ref.String(), Manifest: r.manifest, At: at, Reason: d.Reason}
	if im != nil {
		x.Manifest, x.TrustedBy = im.manifest, im.trustedBy
	}
	key := x.Reference + " " + x.Manifest.String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.all[key]; !ok && len(a.all) >= maxAsked {
		a.dropOldest()
	}
	if a.all == nil {
		a.all = map[string]Asked{}
	}
	a.all[key] = x
	return d
}

func (a *asked) dropOldest() {
	oldest := ""
	for key, x := range a.all {
		if oldest == "" || x.At.Before(a.all[oldest].At) {
			oldest = key
		}
	}
	delete(a.all, oldest)
}

func (a *asked) list() []Asked {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]Asked, 0, len(a.all))
	for _, x := range a.all {
		all = append(all, x)
	}
	return all
}
