package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/supernode/preheat"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// What Harbor's Dragonfly driver sends and reads: the job API of Dragonfly's
// manager, as far as it has a meaning here. Fields that only tune Dragonfly
// (tag, piece_length, concurrent_count, …) are ignored.
type jobRequest struct {
	Type string  `json:"type"`
	Args jobArgs `json:"args"`
}

type jobArgs struct {
	Type       string            `json:"type"`
	URL        string            `json:"url"`
	URLs       []string          `json:"urls"`
	Headers    map[string]string `json:"headers"`
	Username   string            `json:"username"`
	Password   string            `json:"password"`
	Platform   string            `json:"platform"`
	Scope      string            `json:"scope"`
	IPs        []string          `json:"ips"`
	Count      int               `json:"count"`
	Percentage int               `json:"percentage"`
	Timeout    int64             `json:"timeout"` // nanoseconds
}

type jobReply struct {
	ID        int64        `json:"id"`
	CreatedAt time.Time    `json:"created_at"`
	UpdatedAt time.Time    `json:"updated_at"`
	TaskID    string       `json:"task_id"`
	Type      string       `json:"type"`
	State     string       `json:"state"`
	Args      jobReplyArgs `json:"args"`
	Result    jobResult    `json:"result"`
}

// jobReplyArgs are the arguments without those that may be secret.
type jobReplyArgs struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Platform string `json:"platform,omitempty"`
}

type jobResult struct {
	State     string     `json:"state"`
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt time.Time  `json:"updated_at"`
	JobStates []jobState `json:"job_states"`
}

type jobState struct {
	TaskName  string       `json:"task_name"`
	State     string       `json:"state"`
	CreatedAt time.Time    `json:"created_at"`
	Error     string       `json:"error"`
	Results   []jobResults `json:"results"`
}

type jobResults struct {
	SuccessTasks       []jobTask `json:"success_tasks"`
	FailureTasks       []jobTask `json:"failure_tasks"`
	SchedulerClusterID int64     `json:"scheduler_cluster_id"`
}

type jobTask struct {
	URL         string `json:"url"`
	Hostname    string `json:"hostname"`
	IP          string `json:"ip"`
	Description string `json:"description,omitempty"`
}

// The states that Harbor knows; it takes any other for a failure.
const (
	jobPending = "PENDING"
	jobSuccess = "SUCCESS"
	jobFailure = "FAILURE"
)

func (a *API) createJob(w http.ResponseWriter, r *http.Request) error {
	var in jobRequest
	if err := decode(w, r, &in, false); err != nil {
		return unprocessable(err)
	}
	if in.Type != "preheat" {
		return problem(http.StatusUnprocessableEntity, "invalid_request", "type: %.40q is not supported, want preheat", in.Type)
	}
	req, err := in.Args.request(a.o.Cluster.Peers())
	if err != nil {
		return unprocessable(err)
	}
	job, err := a.o.Preheats.Submit(req)
	if err != nil {
		return unprocessable(err)
	}
	return reply(w, http.StatusOK, newJobReply(job, a.o.Cluster.Peers()))
}

// unprocessable gives an invalid request the status that this API has for it.
func unprocessable(err error) error {
	if e := describe(err); e.status == http.StatusBadRequest {
		return &apiError{http.StatusUnprocessableEntity, e.code, e.message}
	}
	return err
}

// request turns the arguments into a request of ours.
func (in jobArgs) request(peers []tracker.PeerInfo) (preheat.Request, error) {
	req := preheat.Request{Type: in.Type, URL: in.URL}
	switch {
	case len(in.URLs) == 1 && in.URL == "":
		req.URL = in.URLs[0]
	case len(in.URLs) > 0:
		return req, invalid("args.urls", "want one job for each URL")
	}
	if in.Platform != "" {
		req.Platforms = []string{in.Platform}
	}
	if in.Timeout < 0 {
		return req, invalid("args.timeout", "is negative")
	}
	if in.Timeout > 0 {
		req.Timeout = preheat.Duration(min(max(time.Duration(in.Timeout), time.Second), preheat.MaxTimeout))
	}
	if in.Username != "" || in.Password != "" {
		req.Credentials = &preheat.Credentials{Username: in.Username, Password: in.Password}
	}
	for name, value := range in.Headers {
		if strings.EqualFold(name, "Authorization") && value != "" {
			req.Credentials = &preheat.Credentials{Authorization: value}
		}
	}
	var err error
	req.Scope, err = in.scope(peers)
	return req, err
}

func (in jobArgs) scope(peers []tracker.PeerInfo) (preheat.Scope, error) {
	switch in.Scope {
	case "", "single_seed_peer", "all_seed_peers":
		return preheat.Scope{}, nil
	case "all_peers":
	default:
		return preheat.Scope{}, invalid("args.scope", "%.40q is unknown: want single_seed_peer, all_seed_peers or all_peers", in.Scope)
	}
	switch {
	case len(in.IPs) > 0:
		var names []string
		for _, p := range peers {
			if slices.Contains(in.IPs, ip(p)) {
				names = append(names, p.Name)
			}
		}
		if len(names) == 0 {
			return preheat.Scope{}, fmt.Errorf("%w: args.ips", preheat.ErrNoPeers)
		}
		return preheat.Scope{Peers: names}, nil
	case in.Count != 0:
		return preheat.Scope{}, invalid("args.count", "is not supported: use percentage or ips")
	case in.Percentage < 0 || in.Percentage > 100:
		return preheat.Scope{}, invalid("args.percentage", "is %d, want 1 to 100", in.Percentage)
	case in.Percentage > 0:
		return preheat.Scope{Percent: in.Percentage}, nil
	}
	return preheat.Scope{AllPeers: true}, nil
}

func invalid(field, format string, args ...any) error {
	return &preheat.InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

func ip(p tracker.PeerInfo) string {
	host, _, err := net.SplitHostPort(p.Address)
	if err != nil {
		return p.Address
	}
	return host
}

func (a *API) getJob(w http.ResponseWriter, r *http.Request) error {
	id, err := jobID(r)
	if err != nil {
		return err
	}
	job, err := a.o.Preheats.Get(id)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, newJobReply(job, a.o.Cluster.Peers()))
}

func newJobReply(j preheat.Job, peers []tracker.PeerInfo) jobReply {
	out := jobReply{
		ID: j.ID, CreatedAt: j.CreatedAt, UpdatedAt: updated(j), TaskID: "preheat_" + strconv.FormatInt(j.ID, 10),
		Type: "preheat", State: state(j), Args: jobReplyArgs{Type: j.Type, URL: j.URL, Platform: strings.Join(j.Platforms, ",")},
	}
	row := jobState{TaskName: "preheat", State: out.State, CreatedAt: j.CreatedAt, Results: []jobResults{results(j, peers)}}
	if out.State == jobFailure {
		row.Error = j.Error
	}
	out.Result = jobResult{State: out.State, CreatedAt: j.CreatedAt, UpdatedAt: out.UpdatedAt, JobStates: []jobState{row}}
	return out
}

func updated(j preheat.Job) time.Time {
	switch {
	case j.FinishedAt != nil:
		return *j.FinishedAt
	case j.StartedAt != nil:
		return *j.StartedAt
	}
	return j.CreatedAt
}

func state(j preheat.Job) string {
	switch {
	case !j.State.Final():
		return jobPending
	case j.State == preheat.Succeeded:
		return jobSuccess
	}
	return jobFailure
}

// supernodeName stands for the supernode in lists of nodes.
const supernodeName = "supernode"

// results lists each content at the supernode and at each node, once it has
// come to an end there.
func results(j preheat.Job, peers []tracker.PeerInfo) jobResults {
	ips := make(map[string]string, len(peers))
	for _, p := range peers {
		ips[p.Name] = ip(p)
	}
	out := jobResults{SuccessTasks: []jobTask{}, FailureTasks: []jobTask{}, SchedulerClusterID: 1}
	add := func(b preheat.Blob, host string, s preheat.State, reason string) {
		row := jobTask{URL: string(b.TaskID), Hostname: host, IP: ips[host]}
		switch {
		case s == preheat.Succeeded:
			out.SuccessTasks = append(out.SuccessTasks, row)
		case s.Final():
			row.Description = reason
			if reason == "" {
				row.Description = string(s)
			}
			out.FailureTasks = append(out.FailureTasks, row)
		}
	}
	for _, b := range j.Blobs {
		add(b, supernodeName, b.State, b.Error)
		for _, p := range b.Peers {
			add(b, p.Name, p.State, p.Error)
		}
	}
	return out
}

// notification is what a registry tells about a push, and what Harbor's Kraken
// driver sends to ask for a preheat.
type notification struct {
	Events []struct {
		Action string `json:"action"`
		Target struct {
			MediaType string `json:"mediaType"`
			URL       string `json:"url"`
		} `json:"target"`
	} `json:"events"`
}

// maxEvents bounds the events of one notification.
const maxEvents = 100

func (a *API) notify(w http.ResponseWriter, r *http.Request) error {
	var in notification
	if err := decode(w, r, &in, false); err != nil {
		return err
	}
	if len(in.Events) > maxEvents {
		return problem(http.StatusBadRequest, "invalid_request", "events: %d, at most %d", len(in.Events), maxEvents)
	}
	ids := []int64{}
	for _, e := range in.Events {
		if e.Action != "push" || !strings.Contains(e.Target.URL, "/manifests/") {
			continue // a pull, or the push of a blob
		}
		job, err := a.o.Preheats.Submit(preheat.Request{Type: preheat.TypeImage, URL: e.Target.URL})
		if err != nil {
			return err
		}
		ids = append(ids, job.ID)
	}
	return reply(w, http.StatusOK, map[string]any{"preheats": ids})
}
