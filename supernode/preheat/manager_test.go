package preheat

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/tracker"
)

const (
	fileURL  = "https://files.test/model.bin"
	fileSize = 10 << 20
)

var fileID = task.ID(digest("file"))

func fileRequest(scope Scope) Request {
	return Request{Type: TypeFile, URL: fileURL, SHA256: strings.TrimPrefix(string(fileID), "sha256:"), Scope: scope}
}

// bubble runs a test with a clock of its own and a manager over fakes.
func bubble(t *testing.T, peers []string, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil, peers...)
		b.cache.sizes[fileID] = fileSize
		b.start()
		test(t, b)
		b.stop()
		if n := b.cache.refs(); n != 0 {
			t.Errorf("%d references to objects are left", n)
		}
		if n := b.tracker.unforgotten(); n != 0 {
			t.Errorf("%d commands are left", n)
		}
		b.Hub().empty(t)
	})
}

// pass lets time go by in a bubble, and everything happen that then happens.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Hub returns the manager's hub.
func (b *bench) Hub() *Hub { return b.o.Hub }

func (h *Hub) empty(t *testing.T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.subs) > 0 {
		t.Errorf("%d subscriptions are left", len(h.subs))
	}
}

func TestProgressAtTheSupernode(t *testing.T) {
	bubble(t, nil, func(t *testing.T, b *bench) {
		j := b.submit(fileRequest(Scope{}))
		if j.ID != 1 || j.State != Pending || time.Duration(j.Timeout) != DefaultTimeout {
			t.Errorf("submitted: %+v", j)
		}
		synctest.Wait()
		b.cache.advance(fileID, 5)
		pass(time.Second)
		j = b.get(1)
		_, piece := task.Uniform(fileSize).Piece(0)
		if j.State != Running || j.StartedAt == nil || len(j.Blobs) != 1 || j.Blobs[0].State != Running || j.Blobs[0].HeldBytes != 5*piece ||
			j.Totals != (Totals{BytesTotal: fileSize, BytesHeld: 5 * piece, BlobsTotal: 1}) {
			t.Errorf("in the middle: %+v", j)
		}
		last := time.Now()
		b.cache.finish(fileID)
		j = b.last(1)
		if j.State != Succeeded || j.Error != "" || j.Blobs[0].HeldBytes != fileSize || j.Blobs[0].State != Succeeded || j.Totals.BlobsDone != 1 {
			t.Errorf("at the end: %+v", j)
		}
		if d := j.FinishedAt.Sub(last); d > time.Second {
			t.Errorf("the end is reported %s after the last byte", d)
		}
		if l := b.List(); len(l) != 1 || l[0].Blobs != nil || l[0].State != Succeeded {
			t.Errorf("List = %+v", l)
		}
	})
}

func TestPeersArePartOfTheTruth(t *testing.T) {
	bubble(t, []string{"good", "bad", "slow"}, func(t *testing.T, b *bench) {
		b.submit(fileRequest(Scope{AllPeers: true}))
		pass(time.Second)
		if o := b.tracker.orders; len(o) != 1 || len(o[0].peers) != 3 || o[0].src.ID != fileID || o[0].src.Credential != (origin.Credential{}) {
			t.Fatalf("orders: %+v", o)
		}
		b.tracker.hold(fileID, "good", fileSize/2)
		b.cache.finish(fileID)
		b.tracker.report(fileID, "bad", tracker.Outcome{Error: "disk is full"})
		pass(time.Second)
		b.tracker.report(fileID, "bad", tracker.Outcome{Error: "disk is full"}) // told again
		b.tracker.report(fileID, "good", tracker.Outcome{Done: true})
		pass(time.Second)
		j := b.get(1)
		if j.State != Running || j.Blobs[0].State != Succeeded {
			t.Fatalf("job: %+v", j)
		}
		if p := j.Blobs[0].Peers; p[0] != (Peer{Name: "bad", State: Failed, Error: "disk is full"}) || p[1] != (Peer{Name: "good", State: Running, HeldBytes: fileSize / 2}) {
			t.Errorf("peers: %+v", p)
		}
		b.tracker.hold(fileID, "good", fileSize)
		b.tracker.hold(fileID, "slow", fileSize)
		b.tracker.report(fileID, "slow", tracker.Outcome{Done: true})
		last := time.Now()
		j = b.last(1)
		if j.State != Partial || !strings.Contains(j.Error, "bad: disk is full") || !strings.Contains(j.Error, "1 of 3 nodes") {
			t.Errorf("%s: %s", j.State, j.Error)
		}
		if j.Totals != (Totals{BytesTotal: 4 * fileSize, BytesHeld: 3 * fileSize, BlobsTotal: 1, BlobsDone: 1, PeersTotal: 3, PeersDone: 2, PeersFailed: 1}) {
			t.Errorf("totals: %+v", j.Totals)
		}
		if d := j.FinishedAt.Sub(last); d > time.Second {
			t.Errorf("the end is reported %s after the last byte", d)
		}
	})
}

func TestDoneWithoutAnnouncementIsNotDone(t *testing.T) {
	bubble(t, []string{"n"}, func(t *testing.T, b *bench) {
		b.submit(fileRequest(Scope{Peers: []string{"n"}}))
		synctest.Wait()
		b.cache.finish(fileID)
		b.tracker.hold(fileID, "n", 1)
		b.tracker.report(fileID, "n", tracker.Outcome{Done: true})
		if j := b.last(1); j.State != Failed || j.Blobs[0].State != Succeeded || !strings.Contains(j.Error, "n: the node says") {
			t.Errorf("%s: %s; %+v", j.State, j.Error, j.Blobs)
		}
	})
}

func TestNodesThatLeave(t *testing.T) {
	bubble(t, []string{"back", "gone", "replaced"}, func(t *testing.T, b *bench) {
		b.submit(fileRequest(Scope{AllPeers: true}))
		synctest.Wait()
		b.cache.finish(fileID)
		pass(time.Second)
		for _, n := range []string{"back", "gone", "replaced"} {
			b.tracker.connect(n, false)
		}
		b.tracker.connect("replaced", true) // before anybody looks
		pass(5 * time.Second)
		b.tracker.obedient(func(task.ID) int64 { return fileSize })
		b.tracker.connect("back", true)
		pass(2 * time.Second)
		j := b.get(1)
		if p := j.Blobs[0].Peers; p[0].State != Succeeded || p[0].Error != "" || p[1].State != Running || !strings.Contains(p[1].Error, "left") {
			t.Errorf("peers: %+v", p)
		}
		b.tracker.report(fileID, "replaced", tracker.Outcome{Done: true})
		b.tracker.hold(fileID, "replaced", fileSize)
		if j = b.last(1); j.State != Partial || !strings.Contains(j.Error, "gone: the node has left the cluster") || j.Totals.PeersDone != 2 {
			t.Errorf("%s: %s %+v", j.State, j.Error, j.Blobs)
		}
		if d := j.FinishedAt.Sub(*j.StartedAt); d < 30*time.Second || d > 35*time.Second {
			t.Errorf("a node that is gone was waited for for %s", d)
		}
	})
}

func TestFailuresAtTheSupernode(t *testing.T) {
	gone := &origin.StatusError{Method: "GET", URL: fileURL, Status: http.StatusNotFound}
	busy := &origin.StatusError{Method: "GET", URL: fileURL, Status: http.StatusServiceUnavailable}
	for _, c := range []struct {
		name   string
		refuse []error
		fail   []error // once the object is there
		revoke error
		state  State
		asked  int
		says   string
	}{
		{"refused", []error{gone}, nil, nil, Failed, 1, "404"},
		{"refused for a while", []error{busy, busy}, nil, nil, Succeeded, 3, ""},
		{"refused for long", []error{busy, busy, busy}, nil, nil, Failed, 3, "503"},
		{"fails for a while", nil, []error{busy}, nil, Succeeded, 2, ""},
		{"fails for good", nil, []error{gone, gone}, nil, Failed, 2, "404"},
		{"is revoked", nil, nil, errors.New("has another digest"), Failed, 1, "another digest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, []string{"n"}, func(t *testing.T, b *bench) {
				b.cache.refuse[fileID] = c.refuse
				b.submit(fileRequest(Scope{AllPeers: true}))
				pass(4 * time.Second)
				for _, err := range c.fail {
					b.Hub().Failed(fileID, err)
					pass(4 * time.Second)
				}
				if c.revoke != nil {
					b.Hub().Revoked(fileID, c.revoke)
				}
				if c.state == Succeeded {
					b.tracker.hold(fileID, "n", fileSize)
					b.tracker.report(fileID, "n", tracker.Outcome{Done: true})
					b.cache.finish(fileID)
				}
				j := b.last(1)
				if j.State != c.state || !strings.Contains(j.Error, c.says) || b.cache.asked(fileID) != c.asked {
					t.Errorf("%s: %s, asked %d times; want %s, %q, %d", j.State, j.Error, b.cache.asked(fileID), c.state, c.says, c.asked)
				}
				if p := j.Blobs[0].Peers; len(p) != 1 || !p[0].State.Final() || p[0].State != c.state {
					t.Errorf("peers: %+v", p)
				}
			})
		})
	}
}

func TestTimeoutAndCancel(t *testing.T) {
	bubble(t, []string{"n"}, func(t *testing.T, b *bench) {
		r := fileRequest(Scope{AllPeers: true})
		r.Timeout = Duration(time.Minute)
		b.submit(r)
		synctest.Wait()
		b.cache.advance(fileID, 1)
		b.tracker.hold(fileID, "n", 7)
		j := b.last(1)
		if j.State != TimedOut || !strings.Contains(j.Error, "1m0s") || j.Blobs[0].State != TimedOut || j.Blobs[0].Peers[0].State != TimedOut {
			t.Errorf("timed out: %+v", j)
		}
		if j.Blobs[0].HeldBytes == 0 || j.Blobs[0].Peers[0].HeldBytes != 7 || j.FinishedAt.Sub(*j.StartedAt) != time.Minute {
			t.Errorf("timed out: %+v", j)
		}
		b.submit(fileRequest(Scope{AllPeers: true}))
		b.submit(Request{Type: TypeFile, URL: "https://files.test/endless"}) // the cache never answers
		synctest.Wait()
		for id := range int64(2) {
			if _, err := b.Cancel(id + 2); err != nil {
				t.Fatal(err)
			}
			if j := b.last(id + 2); j.State != Cancelled || j.Blobs[0].State != Cancelled {
				t.Errorf("cancelled: %+v", j)
			}
		}
		if j, err := b.Cancel(1); err != nil || j.State != TimedOut {
			t.Errorf("a finished job is cancelled: %+v, %v", j, err)
		}
		if _, err := b.Cancel(9); !errors.Is(err, ErrNotFound) {
			t.Errorf("an unknown job is cancelled: %v", err)
		}
	})
}

func TestJobsWaitForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.Jobs, o.Retain = 1, 2 })
		b.cache.sizes[fileID] = fileSize
		b.start()
		for range 3 {
			b.submit(fileRequest(Scope{}))
		}
		synctest.Wait()
		if b.get(1).State != Running || b.get(2).State != Pending {
			t.Errorf("states %s, %s", b.get(1).State, b.get(2).State)
		}
		if _, err := b.Cancel(2); err != nil {
			t.Fatal(err)
		}
		if j := b.last(2); j.State != Cancelled || j.StartedAt != nil {
			t.Errorf("cancelled while waiting: %+v", j)
		}
		b.cache.finish(fileID)
		if j := b.last(3); j.State != Succeeded {
			t.Errorf("the last: %+v", j)
		}
		if _, err := b.Get(1); !errors.Is(err, ErrNotFound) || len(b.List()) != 2 || b.List()[0].ID != 3 {
			t.Errorf("two are to be kept: %v, %+v", err, b.List())
		}
	})
}

func TestUnfinishedJobsAreBounded(t *testing.T) {
	b := newBench(t, nil)
	for range MaxUnfinished {
		b.submit(fileRequest(Scope{}))
	}
	if _, err := b.Submit(fileRequest(Scope{})); !errors.Is(err, ErrTooMany) {
		t.Errorf("Submit = %v, want ErrTooMany", err)
	}
}

func TestWatchIsCoalescedAndEnds(t *testing.T) {
	bubble(t, nil, func(t *testing.T, b *bench) {
		b.submit(fileRequest(Scope{}))
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		slow, err := b.Watch(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		quit, err := b.Watch(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			b.cache.advance(fileID, i+1)
			pass(time.Second)
		}
		_, n := task.Uniform(fileSize).Piece(0)
		if j := <-slow; j.Blobs[0].HeldBytes != 10*n {
			t.Errorf("a slow reader gets %d bytes, want the newest", j.Blobs[0].HeldBytes)
		}
		cancel()
		synctest.Wait()
		for range quit { // gets what was left, and is closed
		}
		rest, err := b.Watch(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		b.stop() // the job is not finished: the watch ends without a final state
		var j Job
		for j = range rest {
		}
		if j.State.Final() {
			t.Errorf("state %s after the supernode stopped", j.State)
		}
		if _, err := b.Submit(fileRequest(Scope{})); !errors.Is(err, ErrStopping) {
			t.Errorf("Submit after Run = %v, want ErrStopping", err)
		}
	})
}

func TestManyBlobsAreFetchedEightAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil, "n")
		s := subject{image: &imageRef{base: "https://r.test", repo: "app", reference: "x"}}
		j := &job{id: 1, subject: s, watchers: map[chan Job]struct{}{}, targets: []string{"n"}}
		j.snap = Job{ID: 1, Type: TypeImage, State: Pending, Timeout: Duration(time.Hour)}
		for i := range 20 {
			id := task.ID(digest(fmt.Sprint(i)))
			b.cache.sizes[id] = 100
			j.snap.Blobs = append(j.snap.Blobs, Blob{TaskID: id, Size: 100}) // as after a restart
		}
		b.live[1] = j
		b.queue = append(b.queue, j)
		b.nudge()
		b.start()
		pass(time.Second)
		for done := 0; done < 20; {
			b.cache.mu.Lock()
			var open []task.ID
			for id, o := range b.cache.objects {
				if !o.complete {
					open = append(open, id)
				}
			}
			b.cache.mu.Unlock()
			if want := min(8, 20-done); len(open) != want {
				t.Fatalf("%d blobs are being fetched after %d, want %d", len(open), done, want)
			}
			for _, id := range open {
				b.cache.finish(id)
				done++
			}
			pass(time.Second)
		}
		if got := b.get(1); got.State != Running || got.Totals.BlobsDone != 20 {
			t.Errorf("%+v", got.Totals)
		}
		for _, blob := range b.get(1).Blobs {
			b.tracker.hold(blob.TaskID, "n", 100)
			b.tracker.report(blob.TaskID, "n", tracker.Outcome{Done: true})
		}
		if got := b.last(1); got.State != Succeeded || got.Totals.PeersDone != 1 {
			t.Errorf("%s: %+v", got.State, got.Totals)
		}
	})
}
