package preheat

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/state"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

var _ Tracker = (*tracker.Tracker)(nil)

// realBench is a manager over the supernode's own cache.
func realBench(t *testing.T) (*bench, *piecestore.Store) {
	t.Helper()
	store, err := piecestore.Open(piecestore.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	hub := NewHub(nil)
	cache := cdn.New(cdn.Options{Store: store, Origin: client(), Events: hub})
	b := &bench{t: t, tracker: newFakeTracker("n"), state: state.NewMemory()}
	b.open(func(o *Options) {
		o.Origin, o.Hub, o.Cache, o.Retry = client(), hub, FromCDN(cache), time.Millisecond
	})
	b.tracker.obedient(func(id task.ID) int64 {
		tk, ok := store.Get(id)
		if !ok {
			return -1
		}
		defer tk.Release()
		return tk.Table().Length
	})
	t.Cleanup(func() {
		cache.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	b.start() // its cleanup, which stops it, runs first
	return b, store
}

func TestImageIntoTheRealCache(t *testing.T) {
	r := newRegistry(t, "user", password)
	b, store := realBench(t)
	req := Request{Type: TypeImage, Ref: r.host + "/app", Platforms: []string{"all"}, Scope: Scope{AllPeers: true}}
	req.Credentials = &Credentials{Username: "user", Password: password}
	b.submit(req)
	j := b.last(1)
	if j.State != Succeeded || j.Totals.BlobsDone != 5 || j.Totals.PeersDone != 1 || j.Totals.BytesHeld != j.Totals.BytesTotal {
		t.Errorf("%s %s: %+v", j.State, j.Error, j.Totals)
	}
	held := map[task.ID]bool{}
	for _, i := range store.List() {
		held[i.ID] = i.Complete
	}
	for _, blob := range j.Blobs {
		if !held[blob.TaskID] {
			t.Errorf("%s is reported as held, and is not", blob.TaskID)
		}
	}
	req.Credentials = nil
	b.submit(req)
	if j := b.last(2); j.State != Failed || !strings.Contains(j.Error, "401") {
		t.Errorf("without credentials: %s %s", j.State, j.Error)
	}
}

func TestFilesIntoTheRealCache(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB
	var down atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/missing":
			http.NotFound(w, r)
		case r.URL.Path == "/flaky" && !down.Swap(true):
			http.Error(w, "not now", http.StatusServiceUnavailable)
		default:
			http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(content))
		}
	}))
	t.Cleanup(srv.Close)
	sum := strings.TrimPrefix(string(task.BlobID(sha256.Sum256(content))), "sha256:")
	b, _ := realBench(t)
	for i, c := range []struct {
		path, sum string
		state     State
		says      string
	}{
		{"/known", sum, Succeeded, ""},
		{"/unknown?sig=" + signature, "", Succeeded, ""},
		{"/flaky", "", Succeeded, ""},
		{"/missing", "", Failed, "404"},
		{"/wrong", strings.Repeat("ab", 32), Failed, "SHA-256"},
	} {
		b.submit(Request{Type: TypeFile, URL: srv.URL + c.path, SHA256: c.sum, Scope: Scope{AllPeers: true}, Timeout: Duration(time.Minute)})
		j := b.last(int64(i + 1))
		if j.State != c.state || !strings.Contains(j.Error, c.says) || strings.Contains(j.URL+j.Error, signature) {
			t.Errorf("%s: %s %s", c.path, j.State, j.Error)
		}
		if c.state == Succeeded && (j.Blobs[0].HeldBytes != int64(len(content)) || j.Totals.PeersDone != 1 || j.Blobs[0].TaskID == "") {
			t.Errorf("%s: %+v", c.path, j.Blobs)
		}
	}
}
