package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/damselfly-io/damselfly/supernode/preheat"
)

func (a *API) createPreheat(w http.ResponseWriter, r *http.Request) error {
	var req preheat.Request
	if err := decode(w, r, &req, true); err != nil {
		return err
	}
	job, err := a.o.Preheats.Submit(req)
	if err != nil {
		return err
	}
	w.Header().Set("Location", fmt.Sprintf("/api/v1/preheats/%d", job.ID))
	return reply(w, http.StatusCreated, job)
}

const defaultLimit, maxLimit = 100, 2000

func (a *API) listPreheats(w http.ResponseWriter, r *http.Request) error {
	limit := defaultLimit
	if s := r.URL.Query().Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxLimit {
			return problem(http.StatusBadRequest, "invalid_request", "limit: want 1 to %d", maxLimit)
		}
	}
	want := preheat.State(r.URL.Query().Get("state"))
	jobs := []preheat.Job{}
	for _, j := range a.o.Preheats.List() {
		if len(jobs) < limit && (want == "" || j.State == want) {
			jobs = append(jobs, j)
		}
	}
	return reply(w, http.StatusOK, map[string]any{"preheats": jobs})
}

// jobID reads the number in the path. Anything else names no job.
func jobID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		return 0, problem(http.StatusNotFound, "not_found", "there is no preheat job %.40q: jobs have numbers", r.PathValue("id"))
	}
	return id, nil
}

func (a *API) getPreheat(w http.ResponseWriter, r *http.Request) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	job, err := a.o.Preheats.Get(id)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, job)
}

func (a *API) cancelPreheat(w http.ResponseWriter, r *http.Request) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	job, err := a.o.Preheats.Cancel(id)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, job)
}

// eventTimeout is how long a client may take to read one event.
const eventTimeout = 30 * time.Second

// events writes a stream of server-sent events.
type events struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func (e events) send(text string) error {
	if err := e.c.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := e.w.Write([]byte(text)); err != nil {
		return err
	}
	return e.c.Flush()
}

func (e events) job(j preheat.Job) error {
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	name := "progress"
	if j.State.Final() {
		name = "done"
	}
	return e.send("event: " + name + "\ndata: " + string(b) + "\n\n")
}

// preheatEvents streams a job until it is finished. A stream that ends without
// "done" was cut off, by the supernode's end for example.
func (a *API) preheatEvents(w http.ResponseWriter, r *http.Request) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	updates, err := a.o.Preheats.Watch(r.Context(), id)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // proxies that know it pass events on at once
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	if err := a.stream(r, events{w, http.NewResponseController(w)}, updates); err != nil {
		a.o.Log.Debug("an event stream ended early", "job", id, "error", err)
	}
	return nil
}

func (a *API) stream(r *http.Request, e events, updates <-chan preheat.Job) error {
	alive := time.NewTicker(a.o.KeepAlive)
	defer alive.Stop()
	gap := time.NewTimer(0)
	defer gap.Stop()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-alive.C:
			if err := e.send(": alive\n\n"); err != nil {
				return err
			}
			continue
		case j, ok := <-updates:
			if !ok {
				return nil
			}
			if err := e.job(j); err != nil || j.State.Final() {
				return err
			}
		}
		gap.Reset(a.o.EventGap)
		select {
		case <-gap.C:
		case <-r.Context().Done():
		}
	}
}
