package supernode

import (
	"fmt"
	"net/http"

	"github.com/damselfly-io/damselfly/internal/secret"
	"github.com/damselfly-io/damselfly/internal/telemetry"
	"github.com/damselfly-io/damselfly/internal/upstream"
	"github.com/damselfly-io/damselfly/supernode/httpapi"
	"github.com/damselfly-io/damselfly/supernode/preheat"
)

// newJobs makes the manager of preheat jobs.
func (s *supernode) newJobs(c Config, hub *preheat.Hub) (*preheat.Manager, error) {
	known, err := upstream.Parse(c.Registries)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return preheat.New(preheat.Options{
		Accelerator: accelerator{s.accelerate},
		State:       s.state, Cache: preheat.FromCDN(s.cache), Hub: hub, Tracker: s.tracker, Origin: s.origin,
		Upstream: known.Of, Log: s.log,
	})
}

// api returns the handler of the HTTP port.
func (s *supernode) api(c Config) (http.Handler, error) {
	token, err := secret.ReadFile(c.APITokenFile)
	if err != nil {
		return nil, fmt.Errorf("api-token-file: %w", err)
	}
	mux := telemetry.Mux(s.reg, &s.health)
	httpapi.New(httpapi.Options{
		Preheats: s.jobs, Accelerated: s.accelerate, Cluster: s.tracker, Store: s.store, Token: token, Log: s.log,
	}).Register(mux)
	return mux, nil
}
