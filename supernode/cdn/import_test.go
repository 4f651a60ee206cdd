package cdn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

func importBench(t *testing.T, o Options) (*Cache, *events) {
	t.Helper()
	store, err := piecestore.Open(piecestore.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ev := &events{}
	o.Store, o.Events, o.Origin = store, ev, origin.New(origin.Options{MaxAttempts: 1})
	c := New(o)
	t.Cleanup(func() {
		c.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, ev
}

func TestImport(t *testing.T) {
	c, _ := importBench(t, Options{})
	content := []byte(strings.Repeat("0123456789", 1000))
	id := task.BlobID(sha256.Sum256(content))
	table := task.Variable([]int64{1, 4000, 10_000})
	for range 2 {
		if err := c.Import(t.Context(), id, table, "made here", bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	o, err := c.Ensure(t.Context(), Request{ID: id, URL: "http://127.0.0.1:1/x", Authorized: true, Whole: true})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Release()
	if set, complete := o.Published(); !complete || set.Len() != 3 || !o.Table().Equal(table) {
		t.Errorf("published %v, complete %v, table %v", set, complete, o.Table())
	}
	r, err := o.Open(t.Context(), 3999, 3000)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[3999:6999]) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

func TestImportRefusesOtherContent(t *testing.T) {
	c, ev := importBench(t, Options{})
	content := []byte("content")
	id := task.BlobID(sha256.Sum256(content))
	var wrong *DigestError
	if err := c.Import(t.Context(), id, task.Uniform(7), "x", strings.NewReader("CONTENT")); !errors.As(err, &wrong) {
		t.Errorf("other bytes: %v", err)
	}
	if err := c.Import(t.Context(), id, task.Uniform(7), "x", strings.NewReader("cont")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too few bytes: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Import(ended, id, task.Uniform(7), "x", bytes.NewReader(content)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if err := c.Import(t.Context(), id, task.Uniform(7), "x", bytes.NewReader(content)); err != nil {
		t.Errorf("after all: %v", err)
	}
	if err := c.Import(t.Context(), id, task.Uniform(8), "x", bytes.NewReader(content)); err == nil {
		t.Error("another length was taken")
	}
	ev.mu.Lock()
	defer ev.mu.Unlock()
	if len(ev.revoked) != 1 {
		t.Errorf("revoked %v", ev.revoked)
	}
}

func TestStandIn(t *testing.T) {
	s := newSite(t, 100)
	s.set(func() { s.allow = func(a string) bool { return a == "Bearer good" } })
	content := []byte("made here")
	id := task.BlobID(sha256.Sum256(content))
	c, _ := importBench(t, Options{StandIn: func(asked task.ID, url string) (origin.Object, bool) {
		return origin.Object{URL: s.URL + "/v2/repo/manifests/image", Header: http.Header{"Accept": {"x"}}}, asked == id && strings.Contains(url, "/v2/repo/")
	}})
	if err := c.Import(t.Context(), id, task.Uniform(int64(len(content))), "x", bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{"good": true, "bad": false} {
		o, err := c.Ensure(t.Context(), Request{ID: id, URL: s.URL + "/v2/repo/blobs/" + string(id), Credential: bearer(token), Whole: true})
		if (err == nil) != want {
			t.Errorf("%s: %v", token, err)
		}
		if err == nil {
			o.Release()
		}
	}
	if n := len(s.ranges()); n != 0 {
		t.Errorf("%d reads of the origin", n)
	}
}

func TestWaitCompleteTellsWhyNot(t *testing.T) {
	s := newSite(t, 5*testPiece)
	s.set(func() {
		s.intercept = func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n > 1 {
				http.Error(w, "gone", http.StatusGone)
			}
			return n > 1
		}
	})
	c, _ := importBench(t, Options{Segment: testSegment, Parallel: 1})
	o, err := c.Ensure(t.Context(), s.request())
	if err != nil {
		t.Fatal(err)
	}
	defer o.Release()
	var status *origin.StatusError
	if err := o.WaitComplete(t.Context()); !errors.As(err, &status) || status.Status != http.StatusGone {
		t.Errorf("%v, want the origin's 410", err)
	}
	s.set(func() { s.intercept = nil })
	o.want(s.request())
	if err := o.WaitComplete(t.Context()); err != nil {
		t.Errorf("after all: %v", err)
	}
}
