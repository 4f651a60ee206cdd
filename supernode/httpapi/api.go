package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/preheat"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// Preheats runs jobs; *preheat.Manager does.
type Preheats interface {
	Submit(r preheat.Request) (preheat.Job, error)
	Get(id int64) (preheat.Job, error)
	List() []preheat.Job
	Cancel(id int64) (preheat.Job, error)
	Watch(ctx context.Context, id int64) (<-chan preheat.Job, error)
}

// Accelerated knows the images whose indexes the supernode offers;
// *accelerate.Accelerator does.
type Accelerated interface {
	List() []accelerate.Info
	Remove(image string) ([]accelerate.Info, error)
}

// Cluster knows the nodes; *tracker.Tracker does.
type Cluster interface {
	Peers() []tracker.PeerInfo
	Holders(id task.ID) []string
	HeldBytes(id task.ID, peer string) int64
}

// Store lists what the supernode holds; *piecestore.Store does.
type Store interface {
	List() []piecestore.Info
}

// Options configures an API. Preheats, Accelerated, Cluster and Store are
// required.
type Options struct {
	Preheats    Preheats
	Accelerated Accelerated
	Cluster     Cluster
	Store       Store
	// Token that clients must send; "" means that only clients on this machine
	// are served.
	Token string
	Log   *slog.Logger
	// KeepAlive is how often a quiet event stream says that it is alive;
	// default 15 s.
	KeepAlive time.Duration
	// EventGap is the least time between two events of a stream; default
	// 100 ms.
	EventGap time.Duration
}

// API answers requests. Make one with New.
type API struct {
	o Options
}

// New returns an API. It starts nothing.
func New(o Options) *API {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.KeepAlive = cmp.Or(o.KeepAlive, 15*time.Second)
	o.EventGap = cmp.Or(o.EventGap, 100*time.Millisecond)
	return &API{o: o}
}

// route is one path with what its methods do.
type route struct {
	path    string
	open    bool // without authentication
	methods map[string]handler
}

// handler answers a request or returns why not.
type handler func(w http.ResponseWriter, r *http.Request) error

func (a *API) routes() []route {
	return []route{
		{path: "/api/v1/preheats", methods: map[string]handler{"GET": a.listPreheats, "POST": a.createPreheat}},
		{path: "/api/v1/preheats/{id}", methods: map[string]handler{"GET": a.getPreheat, "DELETE": a.cancelPreheat}},
		{path: "/api/v1/preheats/{id}/events", methods: map[string]handler{"GET": a.preheatEvents}},
		{path: "/api/v1/accelerated", methods: map[string]handler{"GET": a.listAccelerated}},
		{path: "/api/v1/accelerated/{digest}", methods: map[string]handler{"DELETE": a.removeAccelerated}},
		{path: "/api/v1/peers", methods: map[string]handler{"GET": a.listPeers}},
		{path: "/api/v1/tasks", methods: map[string]handler{"GET": a.listTasks}},
		{path: "/api/v1/tasks/{id}", methods: map[string]handler{"GET": a.getTask}},
		{path: "/healthy", open: true, methods: map[string]handler{"GET": healthy}},
		{path: "/oapi/v1/jobs", methods: map[string]handler{"POST": a.createJob}},
		{path: "/oapi/v1/jobs/{id}", methods: map[string]handler{"GET": a.getJob}},
		{path: "/health", open: true, methods: map[string]handler{"GET": healthy}},
		{path: "/registry/notifications", methods: map[string]handler{"POST": a.notify}},
	}
}

// Register adds the API's routes to mux. Unknown paths below /api/ and /oapi/
// are answered as well.
func (a *API) Register(mux *http.ServeMux) {
	for _, rt := range a.routes() {
		mux.Handle(rt.path, a.serve(rt))
	}
	for _, prefix := range []string{"/api/", "/oapi/"} {
		mux.Handle(prefix, a.serve(route{}))
	}
}

// serve is the frame of every request: who may, which method, how errors look.
func (a *API) serve(rt route) http.Handler {
	allow := strings.Join(allowed(rt.methods), ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		err := a.admit(r)
		if rt.open {
			err = nil
		}
		h := rt.methods[r.Method]
		if r.Method == http.MethodHead {
			h = rt.methods[http.MethodGet]
		}
		switch {
		case err != nil:
		case rt.methods == nil:
			err = problem(http.StatusNotFound, "not_found", "there is no %.200s; see the API's description, api/openapi.yaml", r.URL.Path)
		case h == nil:
			w.Header().Set("Allow", allow)
			err = problem(http.StatusMethodNotAllowed, "method_not_allowed", "%s takes %s, not %.20s", rt.path, allow, r.Method)
		default:
			err = h(w, r)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

func allowed(methods map[string]handler) []string {
	var names []string
	for name := range methods {
		names = append(names, name)
		if name == http.MethodGet {
			names = append(names, http.MethodHead)
		}
	}
	slices.Sort(names)
	return names
}

func healthy(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, http.StatusOK, map[string]string{"status": "ok"})
}

// reply writes v as JSON. It is an error only if v has no JSON form: a client
// that is gone does not read an error either.
func reply(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
	return nil
}
