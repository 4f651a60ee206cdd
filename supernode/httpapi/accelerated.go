package httpapi

import (
	"net/http"

	"github.com/damselfly-io/damselfly/supernode/accelerate"
)

func (a *API) listAccelerated(w http.ResponseWriter, _ *http.Request) error {
	images := a.o.Accelerated.List()
	if images == nil {
		images = []accelerate.Info{}
	}
	return reply(w, http.StatusOK, map[string]any{"accelerated": images})
}

func (a *API) removeAccelerated(w http.ResponseWriter, r *http.Request) error {
	removed, err := a.o.Accelerated.Remove(r.PathValue("digest"))
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]any{"accelerated": removed})
}
