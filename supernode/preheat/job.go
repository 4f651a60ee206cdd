package preheat

import (
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// State is how a job, a content or a content at a node stands.
type State string

// The states. Those after Running are final.
const (
	// Pending: not begun.
	Pending State = "pending"
	// Running: under way.
	Running State = "running"
	// Succeeded: everything is held where it was wanted.
	Succeeded State = "succeeded"
	// Partial, of a job: the supernode holds everything and at least one node
	// does, but not all of them.
	Partial State = "partial"
	// Failed: the supernode or, of a job, every node could not get something.
	Failed State = "failed"
	// Cancelled by request.
	Cancelled State = "cancelled"
	// TimedOut: not finished within the job's timeout.
	TimedOut State = "timed_out"
)

// Final reports whether the state does not change any more.
func (s State) Final() bool { return s != Pending && s != Running }

// Job describes a job as it stands. It is the caller's to read, not to change.
type Job struct {
	ID   int64  `json:"id"`
	Type string `json:"type"`
	Ref  string `json:"ref,omitempty"`
	// URL as in the request; values of its query that may be secret are
	// replaced by REDACTED.
	URL       string   `json:"url,omitempty"`
	SHA256    string   `json:"sha256,omitempty"`
	Platforms []string `json:"platforms,omitempty"`
	Scope     Scope    `json:"scope"`
	Timeout   Duration `json:"timeout"`
	// Accelerate says that the image's index is to be made, too.
	Accelerate bool `json:"accelerate,omitempty"`

	State State `json:"state"`
	// Error says why the job is not Succeeded, in one line.
	Error      string     `json:"error,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`

	// Digest of the image's manifest or index, once it is known.
	Digest string `json:"digest,omitempty"`
	Totals Totals `json:"totals"`
	// Blobs are the contents: what an image consists of, or the file. They are
	// missing from lists of jobs.
	Blobs []Blob `json:"blobs,omitempty"`
	// Acceleration has a row for the image of each platform, if that was asked
	// for. What fails there leaves the job's state as it is.
	Acceleration []Acceleration `json:"acceleration,omitempty"`
}

// Acceleration is how the index of an image stands.
type Acceleration struct {
	// Image is the digest of the image's manifest, Index that of the artifact.
	Image string `json:"image"`
	Index string `json:"index,omitempty"`
	// Bytes is the size of what was made besides the image's own layers.
	Bytes int64  `json:"bytes"`
	State State  `json:"state"`
	Error string `json:"error,omitempty"`
}

// Totals sums up a job over everything that is wanted somewhere: a content of
// 1 GiB for the supernode and 3 nodes counts as 4 GiB.
type Totals struct {
	BytesTotal int64 `json:"bytes_total"`
	BytesHeld  int64 `json:"bytes_held"`
	BlobsTotal int   `json:"blobs_total"`
	BlobsDone  int   `json:"blobs_done"`
	PeersTotal int   `json:"peers_total"`
	// PeersDone are the nodes that hold everything, PeersFailed those that
	// failed to get something.
	PeersDone   int `json:"peers_done"`
	PeersFailed int `json:"peers_failed"`
}

// Blob is one content of a job. State, HeldBytes and Error are the supernode's.
type Blob struct {
	// TaskID is what the content is called in the swarm; empty for a file until
	// its origin has answered.
	TaskID task.ID `json:"task_id,omitempty"`
	Digest string  `json:"digest,omitempty"`
	// Size in bytes, 0 for a file until its origin has answered.
	Size      int64  `json:"size"`
	HeldBytes int64  `json:"held_bytes"`
	State     State  `json:"state"`
	Error     string `json:"error,omitempty"`
	Peers     []Peer `json:"peers,omitempty"`
}

// Peer is one content at one node.
type Peer struct {
	Name      string `json:"name"`
	HeldBytes int64  `json:"held_bytes"`
	State     State  `json:"state"`
	Error     string `json:"error,omitempty"`
}

// totals sums up blobs wanted at the supernode and peers nodes.
func totals(blobs []Blob, peers int) Totals {
	t := Totals{BlobsTotal: len(blobs), PeersTotal: peers}
	done, failed := map[string]int{}, map[string]bool{}
	for _, b := range blobs {
		t.BytesTotal += b.Size * int64(1+peers)
		t.BytesHeld += b.HeldBytes
		if b.State == Succeeded {
			t.BlobsDone++
		}
		for _, p := range b.Peers {
			t.BytesHeld += p.HeldBytes
			switch {
			case p.State == Succeeded:
				done[p.Name]++
			case p.State.Final():
				failed[p.Name] = true
			}
		}
	}
	t.PeersFailed = len(failed)
	for _, n := range done {
		if n == len(blobs) {
			t.PeersDone++
		}
	}
	return t
}
