package cluster_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/preheat"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// The documents that the supernode writes lose nothing on their way through
// dfctl.
func TestDocumentsAreTheSupernodes(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	later := now.Add(time.Minute)
	job := preheat.Job{
		ID: 1, Type: "image", Ref: "r", URL: "u", SHA256: "s", Platforms: []string{"p"}, Scope: preheat.Scope{Zone: "z"},
		Timeout: preheat.Duration(time.Hour), Accelerate: true, State: preheat.Partial, Error: "e", CreatedAt: now, StartedAt: &now, FinishedAt: &later, Digest: "d",
		Totals: preheat.Totals{BytesTotal: 2, BytesHeld: 3, BlobsTotal: 4, BlobsDone: 5, PeersTotal: 6, PeersDone: 7, PeersFailed: 8},
		Blobs: []preheat.Blob{{TaskID: "t", Digest: "b", Size: 9, HeldBytes: 10, State: preheat.Failed, Error: "x",
			Peers: []preheat.Peer{{Name: "n", HeldBytes: 11, State: preheat.Running, Error: "y"}}}},
		Acceleration: []preheat.Acceleration{{Image: "i", Index: "x", Bytes: 12, State: preheat.TimedOut, Error: "z"}},
	}
	peer := tracker.PeerInfo{Name: "n", Zone: "z", Rack: "r", Address: "a", Version: "v", Tasks: 1, Quarantined: true}
	accelerated := accelerate.Info{Image: "i", Digest: "d", Index: "x", Key: "k", Blobs: 1, Bytes: 2, CreatedAt: now, Pushed: true, PushError: "e"}
	for _, tt := range []struct{ theirs, ours any }{{accelerated, &cluster.Accelerated{}}, {job, &cluster.Job{}}, {job.Totals, &cluster.Totals{}}, {job.Acceleration[0], &cluster.Acceleration{}}, {job.Blobs[0], &cluster.Blob{}}, {job.Blobs[0].Peers[0], &cluster.BlobPeer{}}, {peer, &cluster.Peer{}}} {
		fields := reflect.ValueOf(tt.theirs)
		for i := range fields.NumField() {
			if fields.Field(i).IsZero() {
				t.Errorf("%T.%s is not filled: the test sees nothing of it", tt.theirs, fields.Type().Field(i).Name)
			}
		}
		want := encode(t, tt.theirs)
		if err := json.Unmarshal(want, tt.ours); err != nil {
			t.Errorf("%T: %v", tt.ours, err)
		}
		if got := encode(t, tt.ours); string(got) != string(want) {
			t.Errorf("%T: got\n%s, want\n%s", tt.ours, got, want)
		}
	}
}

func TestRequestsAreTheSupernodes(t *testing.T) {
	ours := cluster.PreheatRequest{
		Type: "image", Ref: "r", URL: "u", SHA256: "s", Platforms: []string{"p"}, Scope: cluster.Scope{Percent: 10},
		Credentials: &cluster.Credentials{Username: "n", Password: "w"}, Timeout: "1h0m0s", Accelerate: true,
	}
	want := preheat.Request{
		Type: "image", Ref: "r", URL: "u", SHA256: "s", Platforms: []string{"p"}, Scope: preheat.Scope{Percent: 10},
		Credentials: &preheat.Credentials{Username: "n", Password: "w"}, Timeout: preheat.Duration(time.Hour), Accelerate: true,
	}
	var got preheat.Request
	dec := json.NewDecoder(bytes.NewReader(encode(t, ours)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
