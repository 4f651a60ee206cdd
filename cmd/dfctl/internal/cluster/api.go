package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Peer is a connected node.
type Peer struct {
	Name        string `json:"name"`
	Zone        string `json:"zone,omitempty"`
	Rack        string `json:"rack,omitempty"`
	Address     string `json:"address"`
	Version     string `json:"version,omitempty"`
	Tasks       int    `json:"tasks"`
	Quarantined bool   `json:"quarantined"`
}

// Task is what the cluster knows of a task.
type Task struct {
	ID string `json:"id"`
	// Cached is null if the supernode does not hold the task.
	Cached      *Cached `json:"cached"`
	HolderCount int     `json:"holder_count"`
	// Holders are the nodes that hold some of it; not in lists.
	Holders []Holder `json:"holders,omitempty"`
}

// Cached is a task at the supernode.
type Cached struct {
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

// Holder is a node that holds some of a task.
type Holder struct {
	Name      string `json:"name"`
	HeldBytes int64  `json:"held_bytes"`
}

// StartPreheat creates a job.
func (c *Client) StartPreheat(ctx context.Context, req PreheatRequest) (*Job, error) {
	var job Job
	object := req.Ref + req.URL
	if err := c.call(ctx, "preheat "+object, http.MethodPost, "/api/v1/preheats", req, &job); err != nil {
		return nil, err
	}
	return &job, nil
}

// Preheat returns a job.
func (c *Client) Preheat(ctx context.Context, id int64) (*Job, error) {
	var job Job
	if err := c.call(ctx, fmt.Sprintf("show preheat job %d", id), http.MethodGet, preheatPath(id), nil, &job); err != nil {
		return nil, err
	}
	return &job, nil
}

// Preheats lists the jobs that the supernode remembers.
func (c *Client) Preheats(ctx context.Context) ([]Job, error) {
	var doc struct {
		Preheats []Job `json:"preheats"`
	}
	err := c.call(ctx, "list preheat jobs", http.MethodGet, "/api/v1/preheats", nil, &doc)
	return doc.Preheats, err
}

// CancelPreheat ends a job and returns how it stands then; one that had ended
// before stays as it was. What nodes hold already they keep.
func (c *Client) CancelPreheat(ctx context.Context, id int64) (*Job, error) {
	var job Job
	err := c.call(ctx, fmt.Sprintf("cancel preheat job %d", id), http.MethodDelete, preheatPath(id), nil, &job)
	return &job, err
}

func preheatPath(id int64) string { return "/api/v1/preheats/" + strconv.FormatInt(id, 10) }

// FollowPreheat passes the job to update, first as it is and then after every
// change, and returns it when it has ended.
func (c *Client) FollowPreheat(ctx context.Context, id int64, update func(*Job)) (*Job, error) {
	var last *Job
	doing := fmt.Sprintf("follow preheat job %d", id)
	err := c.events(ctx, doing, preheatPath(id)+"/events", func(ev event) error {
		var job Job
		if err := json.Unmarshal([]byte(ev.data), &job); err != nil {
			return fmt.Errorf("decode the event %q: %w", ev.name, err)
		}
		if job.ID == 0 {
			return nil // of another kind
		}
		last = &job
		update(last)
		if last.Ended() {
			return errEnded
		}
		return nil
	})
	if last != nil && last.Ended() {
		return last, nil
	}
	if errors.Is(err, io.EOF) {
		// A proxy or a restart ended the stream: the job goes on.
		return nil, fmt.Errorf("%s: %w", doing, ErrCut)
	}
	return nil, err
}

// ErrCut is returned when the supernode stopped telling about a job that has
// not ended.
var ErrCut = errors.New("the supernode closed the connection before the job ended")

var errEnded = errors.New("the job has ended")

// Peers lists the connected nodes.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	var doc struct {
		Peers []Peer `json:"peers"`
	}
	err := c.call(ctx, "list peers", http.MethodGet, "/api/v1/peers", nil, &doc)
	return doc.Peers, err
}

// Tasks lists the tasks that the supernode holds, the last used first.
func (c *Client) Tasks(ctx context.Context) ([]Task, error) {
	var doc struct {
		Tasks []Task `json:"tasks"`
	}
	err := c.call(ctx, "list the cluster's tasks", http.MethodGet, "/api/v1/tasks", nil, &doc)
	return doc.Tasks, err
}

// Task returns one task.
func (c *Client) Task(ctx context.Context, id string) (*Task, error) {
	var t Task
	if err := c.call(ctx, "show task "+id, http.MethodGet, "/api/v1/tasks/"+url.PathEscape(id), nil, &t); err != nil {
		return nil, err
	}
	return &t, nil
}
