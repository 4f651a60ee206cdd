package httpapi

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

func (a *API) listPeers(w http.ResponseWriter, _ *http.Request) error {
	peers := a.o.Cluster.Peers()
	if peers == nil {
		peers = []tracker.PeerInfo{}
	}
	return reply(w, http.StatusOK, map[string]any{"peers": peers})
}

// taskInfo is a task as the API shows it.
type taskInfo struct {
	ID task.ID `json:"id"`
	// Cached describes it at the supernode, null if it is not there.
	Cached *cached `json:"cached"`
	// HolderCount is the number of nodes that hold some of it.
	HolderCount int `json:"holder_count"`
	// Holders are these nodes; in lists of tasks they are left out.
	Holders []holder `json:"holders,omitempty"`
}

type cached struct {
	Source     string    `json:"source,omitempty"`
	Size       int64     `json:"size"`
	Pieces     int       `json:"pieces"`
	HeldPieces int       `json:"held_pieces"`
	HeldBytes  int64     `json:"held_bytes"`
	Complete   bool      `json:"complete"`
	InUse      bool      `json:"in_use"`
	CreatedAt  time.Time `json:"created_at"`
	LastAccess time.Time `json:"last_access"`
}

type holder struct {
	Name      string `json:"name"`
	HeldBytes int64  `json:"held_bytes"`
}

func newCached(i piecestore.Info) *cached {
	return &cached{
		Source: i.Source, Size: i.Length, Pieces: i.Pieces, HeldPieces: i.HeldPieces, HeldBytes: i.HeldBytes,
		Complete: i.Complete, InUse: i.Refs > 0, CreatedAt: i.Created, LastAccess: i.LastAccess,
	}
}

// listTasks lists what the supernode holds, the last used first.
func (a *API) listTasks(w http.ResponseWriter, _ *http.Request) error {
	infos := a.o.Store.List()
	slices.SortFunc(infos, func(x, y piecestore.Info) int {
		return cmp.Or(y.LastAccess.Compare(x.LastAccess), cmp.Compare(x.ID, y.ID))
	})
	tasks := make([]taskInfo, len(infos))
	for i, info := range infos {
		tasks[i] = taskInfo{ID: info.ID, Cached: newCached(info), HolderCount: len(a.o.Cluster.Holders(info.ID))}
	}
	return reply(w, http.StatusOK, map[string]any{"tasks": tasks})
}

func (a *API) getTask(w http.ResponseWriter, r *http.Request) error {
	id, err := task.ParseID(r.PathValue("id"))
	if err != nil {
		return problem(http.StatusBadRequest, "invalid_request", "%v", err)
	}
	t := taskInfo{ID: id}
	for _, info := range a.o.Store.List() {
		if info.ID == id {
			t.Cached = newCached(info)
		}
	}
	for _, name := range a.o.Cluster.Holders(id) {
		t.Holders = append(t.Holders, holder{name, a.o.Cluster.HeldBytes(id, name)})
	}
	t.HolderCount = len(t.Holders)
	if t.Cached == nil && t.HolderCount == 0 {
		return problem(http.StatusNotFound, "not_found", "neither the supernode nor a connected node holds %s", id)
	}
	return reply(w, http.StatusOK, t)
}
