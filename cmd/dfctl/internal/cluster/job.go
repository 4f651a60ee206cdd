package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The documents of preheat jobs. They are declared here, and not taken from
// supernode/preheat, so that dfctl does not carry the supernode; a test
// compares the two.

// PreheatRequest asks for content to be brought to nodes before it is needed.
type PreheatRequest struct {
	Type        string       `json:"type"` // image or file
	Ref         string       `json:"ref,omitempty"`
	URL         string       `json:"url,omitempty"`
	SHA256      string       `json:"sha256,omitempty"`
	Platforms   []string     `json:"platforms,omitempty"`
	Scope       Scope        `json:"scope"`
	Credentials *Credentials `json:"credentials,omitempty"`
	Timeout     string       `json:"timeout,omitempty"` // such as 30m
	// Accelerate has the image's index made, too.
	Accelerate bool `json:"accelerate,omitempty"`
}

// Credentials are for the registry or origin.
type Credentials struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Scope says where content is wanted. At most one field is set; none means the
// supernode alone.
type Scope struct {
	AllPeers bool
	Peers    []string
	Zone     string
	Percent  int
}

// Scopes that are words.
const (
	ScopeSupernode = "supernode"
	ScopeAllPeers  = "all_peers"
)

// choice is a scope that is no word.
type choice struct {
	Peers   []string `json:"peers,omitempty"`
	Zone    string   `json:"zone,omitempty"`
	Percent int      `json:"percent,omitempty"`
}

// MarshalJSON writes "supernode", "all_peers" or an object with one key.
func (s Scope) MarshalJSON() ([]byte, error) {
	switch {
	case s.AllPeers:
		return json.Marshal(ScopeAllPeers)
	case len(s.Peers) > 0 || s.Zone != "" || s.Percent != 0:
		return json.Marshal(choice{s.Peers, s.Zone, s.Percent})
	}
	return json.Marshal(ScopeSupernode)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Scope) UnmarshalJSON(b []byte) error {
	var word string
	if json.Unmarshal(b, &word) == nil {
		*s = Scope{AllPeers: word == ScopeAllPeers}
		return nil
	}
	var c choice
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("scope: %w", err)
	}
	*s = Scope{Peers: c.Peers, Zone: c.Zone, Percent: c.Percent}
	return nil
}

// String returns the scope in words.
func (s Scope) String() string {
	const most = 3
	switch {
	case s.AllPeers:
		return ScopeAllPeers
	case s.Zone != "":
		return "zone " + s.Zone
	case s.Percent != 0:
		return fmt.Sprintf("%d%% of peers", s.Percent)
	case len(s.Peers) > most:
		return fmt.Sprintf("%d peers", len(s.Peers))
	case len(s.Peers) > 0:
		return strings.Join(s.Peers, ",")
	}
	return ScopeSupernode
}

// States of a job and of its parts.
const (
	Pending   = "pending"
	Running   = "running"
	Succeeded = "succeeded"
	Partial   = "partial"
	Failed    = "failed"
	Cancelled = "cancelled"
	TimedOut  = "timed_out"
)

// Job is a preheat job.
type Job struct {
	ID         int64      `json:"id"`
	Type       string     `json:"type"`
	Ref        string     `json:"ref,omitempty"`
	URL        string     `json:"url,omitempty"`
	SHA256     string     `json:"sha256,omitempty"`
	Platforms  []string   `json:"platforms,omitempty"`
	Scope      Scope      `json:"scope"`
	Timeout    string     `json:"timeout"`
	Accelerate bool       `json:"accelerate,omitempty"`
	State      string     `json:"state"`
	Error      string     `json:"error,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	Digest     string     `json:"digest,omitempty"` // of an image's manifest or index
	Totals     Totals     `json:"totals"`
	Blobs      []Blob     `json:"blobs,omitempty"` // not in lists of jobs
	// Acceleration is how the indexes of the images stand.
	Acceleration []Acceleration `json:"acceleration,omitempty"`
}

// Acceleration is how the index of an image stands: of the manifest for one
// platform.
type Acceleration struct {
	Image string `json:"image"`
	Index string `json:"index,omitempty"`
	Bytes int64  `json:"bytes"` // of what was made
	State string `json:"state"`
	Error string `json:"error,omitempty"`
}

// Totals sums up what is wanted somewhere: a blob for the supernode and 3 nodes
// counts four times.
type Totals struct {
	BytesTotal  int64 `json:"bytes_total"`
	BytesHeld   int64 `json:"bytes_held"`
	BlobsTotal  int   `json:"blobs_total"`
	BlobsDone   int   `json:"blobs_done"`
	PeersTotal  int   `json:"peers_total"`
	PeersDone   int   `json:"peers_done"`
	PeersFailed int   `json:"peers_failed"`
}

// Blob is one content of a job. State, HeldBytes and Error are the supernode's.
type Blob struct {
	TaskID    string     `json:"task_id,omitempty"`
	Digest    string     `json:"digest,omitempty"`
	Size      int64      `json:"size"` // 0: not known yet
	HeldBytes int64      `json:"held_bytes"`
	State     string     `json:"state"`
	Error     string     `json:"error,omitempty"`
	Peers     []BlobPeer `json:"peers,omitempty"`
}

// BlobPeer is one content at one node.
type BlobPeer struct {
	Name      string `json:"name"`
	HeldBytes int64  `json:"held_bytes"`
	State     string `json:"state"`
	Error     string `json:"error,omitempty"`
}

// Object returns the reference or URL of the job.
func (j *Job) Object() string {
	if j.Ref != "" {
		return j.Ref
	}
	return j.URL
}

// Ended says whether the job's state is final.
func (j *Job) Ended() bool { return j.State != Pending && j.State != Running }
