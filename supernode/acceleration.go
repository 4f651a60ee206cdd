package supernode

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/upstream"
	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/preheat"
)

// newAccelerator makes what converts images, and gets the cache later. It also
// returns the keys that nodes are to trust.
func (s *supernode) newAccelerator(c Config, keychain origin.Keychain) (*accelerate.Accelerator, [][]byte, error) {
	names, err := registryNames(c.Registries)
	if err != nil {
		return nil, nil, err
	}
	a, err := accelerate.New(accelerate.Options{
		Dir: filepath.Join(c.DataDir, "accelerate"), State: s.state, Store: s.store, Origin: s.origin,
		Repositories: c.AccelerateRepositories, Registry: func(base string) (string, bool) { name, ok := names[base]; return name, ok },
		Workers: c.AccelerateWorkers, Memory: int64(c.AccelerateMemory), Push: c.AcceleratePush, Keychain: keychain,
		Observe: s.metrics.accelerated, Log: s.log,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("acceleration: %w", err)
	}
	key, err := a.PublicKey()
	if err != nil {
		return nil, nil, fmt.Errorf("acceleration: %w", err)
	}
	s.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "damselfly_accelerated_images", Help: "Images whose indexes this supernode offers.",
	}, func() float64 { return float64(len(a.List())) }))
	return a, [][]byte{key}, nil
}

// registryNames maps the URLs of registries back to their names.
func registryNames(entries []string) (map[string]string, error) {
	known, err := upstream.Parse(entries)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	names := map[string]string{}
	for _, entry := range entries {
		host, _, _ := strings.Cut(entry, "=")
		if base, ok := known.Of(host); ok {
			names[base] = host
		}
	}
	return names, nil
}

// removed is told of content that the cache has dropped, and damaged of such
// that it has lost some of. Neither is called before open has returned.
func (s *supernode) removed(id task.ID) {
	if s.accelerate != nil {
		s.accelerate.Removed(id)
	}
}

func (s *supernode) damaged(id task.ID, piece int) {
	s.removed(id)
	s.cache.Damaged(id, piece)
}

// accelerator gives preheat jobs what they use of the accelerator.
type accelerator struct{ a *accelerate.Accelerator }

// Accelerate implements preheat.Accelerator.
func (a accelerator) Accelerate(ctx context.Context, img preheat.AcceleratedImage) (index string, bytes int64, err error) {
	info, err := a.a.Accelerate(ctx, accelerate.Image{Base: img.Base, Repo: img.Repo, Digest: img.Digest, Credential: img.Credential})
	return info.Index, info.Bytes, err
}
