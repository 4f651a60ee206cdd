package supernode

import (
	"context"
	"net/http"

	"github.com/damselfly-io/damselfly/internal/telemetry"
)

type jobs struct{}

func newJobs(Config, *supernode) (*jobs, error) { return &jobs{}, nil }

func (*jobs) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (s *supernode) api(Config) (http.Handler, error) {
	return telemetry.Mux(s.reg, &s.health), nil
}
