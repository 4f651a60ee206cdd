package cdn

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

const size = 2<<20 + 1234

func TestOneFetchForAll(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	var all sync.WaitGroup
	objects := make(chan *Object, 50)
	for range cap(objects) {
		all.Go(func() {
			o, err := n.Ensure(t.Context(), s.request())
			if err != nil {
				t.Error(err)
				return
			}
			objects <- o
		})
	}
	all.Wait()
	close(objects)
	for o := range objects {
		waitComplete(t, o, s.content)
		o.Release()
	}
	seen := map[string]bool{}
	for _, r := range s.ranges() {
		if seen[r] {
			t.Errorf("range %q was asked for twice", r)
		}
		seen[r] = true
	}
	if want := size/testSegment + 1; len(seen) != want {
		t.Errorf("%d requests, want %d", len(seen), want)
	}
	if sent := s.sent.Load(); float64(sent) > 1.02*size {
		t.Errorf("the origin sent %d bytes for %d", sent, size)
	}
	if s.headCount() != 0 {
		t.Errorf("%d HEADs for one credential", s.headCount())
	}
	testenv.Eventually(t, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.objects) == 0 }, "nobody keeps the object")
}

func TestShapesOfContent(t *testing.T) {
	for _, tc := range []struct {
		name    string
		size    int
		shape   func(*site)
		maxGets int
	}{
		{"empty", 0, func(*site) {}, 2},
		{"one byte", 1, func(*site) {}, 1},
		{"one segment", testSegment, func(*site) {}, 1},
		{"a byte more", testSegment + 1, func(*site) {}, 2},
		{"no ranges", size, func(s *site) { s.noRange = true }, 1},
		{"no length", size, func(s *site) { s.chunked = true }, 1},
		{"no length, empty", 0, func(s *site) { s.chunked = true }, 2},
		{"no validators", size, func(s *site) { s.etag = "" }, 9},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, tc.size)
			tc.shape(s)
			n := newNode(t, nil)
			waitComplete(t, n.ensure(t, s.request()), s.content)
			byURL := s.request()
			byURL.ID = ""
			if gets := len(s.ranges()); gets > tc.maxGets {
				t.Errorf("%d requests, want at most %d: %q", gets, tc.maxGets, s.ranges())
			}
			o := n.ensure(t, byURL)
			waitComplete(t, o, s.content)
			if m := o.Meta(); m.ETag != s.etag || m.ContentType != "application/test" {
				t.Errorf("described as %+v", m)
			}
			if files, err := os.ReadDir(n.dir); err != nil || len(files) != 1 {
				t.Errorf("files left: %v, %v", files, err)
			}
		})
	}
}

func TestWrongDigest(t *testing.T) {
	for _, tc := range []struct {
		name  string
		shape func(*site)
	}{
		{"ranges", func(*site) {}},
		{"no ranges", func(s *site) { s.noRange = true }},
		{"no length", func(s *site) { s.chunked = true }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, size)
			tc.shape(s)
			n := newNode(t, nil)
			r := s.request()
			s.set(func() { s.content = append([]byte(nil), s.content...); s.content[77]++ })
			last := task.Uniform(size).Count() - 1
			n.events.onPublished = func(id task.ID) {
				if o := n.lookup(id); o != nil {
					if set, complete := o.Published(); set.Has(last) || complete {
						t.Error("the last piece was published")
					}
					o.Release()
				}
			}
			o, err := n.Ensure(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, func() bool { return len(n.events.revocations()) > 0 }, "the task is revoked")
			var bad *DigestError
			if err := n.events.revocations()[0]; !errors.As(err, &bad) || bad.ID != r.ID || !strings.Contains(err.Error(), bad.Got.String()) {
				t.Errorf("revoked because %v", err)
			}
			if set, complete := o.Published(); set.Len() != 0 || complete {
				t.Errorf("%d pieces are published, complete %v", set.Len(), complete)
			}
			if o.t.HeldCount() != 0 || o.t.Complete() {
				t.Error("the store holds refused pieces")
			}
			o.Release()
			testenv.Eventually(t, func() bool { _, ok := storeHas(n.store, r.ID); return !ok }, "the store forgets the task")

			// The origin has mended its ways, and another length would do too.
			n.events.onPublished = nil
			good := newSite(t, size)
			r.URL = good.URL + path
			waitComplete(t, n.ensure(t, r), good.content)
		})
	}
}

func storeHas(s *piecestore.Store, id task.ID) (piecestore.Info, bool) {
	for _, info := range s.List() {
		if info.ID == id {
			return info, true
		}
	}
	return piecestore.Info{}, false
}

// abort breaks the connection after sending a part of what was asked for.
func abort(w http.ResponseWriter, s *site, r *http.Request, part int) {
	var first int
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, min(first+testSegment, len(s.content))-1, len(s.content)))
	w.Header().Set("Content-Length", fmt.Sprint(min(first+testSegment, len(s.content))-first))
	w.Header().Set("Etag", s.etag)
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(s.content[first : first+part])
	panic(http.ErrAbortHandler)
}

func TestTruncatedBody(t *testing.T) {
	s := newSite(t, testSegment)
	s.intercept = func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n <= 2 {
			abort(w, s, r, 1000)
		}
		return false
	}
	n := newNode(t, nil)
	waitComplete(t, n.ensure(t, s.request()), s.content)
}

func TestOriginGivesUp(t *testing.T) {
	s := newSite(t, size)
	s.intercept = func(w http.ResponseWriter, _ *http.Request, n int) bool {
		if n > 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
		return n > 1
	}
	n := newNode(t, nil)
	o := n.ensure(t, s.request())
	if err := n.events.waitFailed(t); status(err) != http.StatusBadGateway {
		t.Errorf("failed because %v", err)
	}
	if set, complete := o.Published(); complete || set.Len() > testSegment/testPiece {
		t.Errorf("%d pieces are published, complete %v", set.Len(), complete)
	}
	// It works again, and what is held is not fetched again.
	s.set(func() { s.intercept = nil })
	waitComplete(t, n.ensure(t, s.request()), s.content)
	if sent := s.sent.Load(); float64(sent) > 1.02*size {
		t.Errorf("the origin sent %d bytes for %d", sent, size)
	}
}

func TestStorms(t *testing.T) {
	for _, code := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			s := newSite(t, size)
			s.intercept = func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n%3 == 0 {
					return false
				}
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(code)
				return true
			}
			n := newNode(t, nil)
			// Two workers share the count, so one may run out of attempts: then
			// the next request goes on.
			for {
				o := n.ensure(t, s.request())
				testenv.Eventually(t, func() bool {
					_, complete := o.Published()
					return complete || !o.busy()
				}, "the fetch ends")
				if _, complete := o.Published(); complete {
					waitComplete(t, o, s.content)
					return
				}
			}
		})
	}
}

func TestRangesOnly(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	r := s.request()
	r.Node, r.Whole = "one", false
	r.Ranges = []Range{{Offset: 20*testPiece + 5, Length: 10}, {Offset: 25 * testPiece, Length: testPiece + 1}}
	o := n.ensure(t, r)
	for _, i := range []int{20, 25, 26} {
		if err := o.WaitPublished(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, func() bool { return !o.busy() }, "the fetch ends")
	if set, complete := o.Published(); set.Len() != 3 || complete {
		t.Errorf("%d pieces, complete %v; want the three asked for", set.Len(), complete)
	}
	if sent := s.sent.Load(); sent != 3*testPiece {
		t.Errorf("the origin sent %d bytes, want %d", sent, 3*testPiece)
	}
	// The same node may ask for more of it.
	again := n.ensure(t, r)
	testenv.Eventually(t, func() bool { return !again.busy() }, "the fetch ends")
	if sent := s.sent.Load(); sent != 3*testPiece {
		t.Errorf("the origin sent %d bytes to one node, want %d", sent, 3*testPiece)
	}
	// A second node makes it worth having whole.
	r.Node = "another"
	waitComplete(t, n.ensure(t, r), s.content)
	if sent := s.sent.Load(); sent != size {
		t.Errorf("the origin sent %d bytes of %d", sent, size)
	}
}

func TestAskedRangesComeFirst(t *testing.T) {
	s := newSite(t, size)
	release := make(chan struct{})
	s.intercept = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if !strings.HasPrefix(r.Header.Get("Range"), fmt.Sprintf("bytes=%d-", 30*testPiece)) {
			<-release
		}
		return false
	}
	n := newNode(t, nil)
	// The whole is being fetched by workers that are all stuck, but for the first
	// answer, which Ensure waits for.
	s.set(func() {
		inner := s.intercept
		s.intercept = func(w http.ResponseWriter, r *http.Request, k int) bool { return k > 1 && inner(w, r, k) }
	})
	n.ensure(t, s.request())
	r := s.request()
	r.Ranges = []Range{{Offset: 30 * testPiece, Length: 1}}
	o := n.ensure(t, r)
	if err := o.WaitPublished(t.Context(), 30); err != nil {
		t.Error(err)
	}
	close(release)
	waitComplete(t, o, s.content)
}

// TestTableOfItsOwn reads parts of content that is cut as its readers say.
func TestTableOfItsOwn(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	table := task.Table{Length: size, Ends: []int64{1000, 300_000, 300_001, 900_000, size}}
	for i, node := range []string{"one", "another"} {
		r := s.request()
		r.Node, r.Whole, r.Table = node, false, &table
		r.Ranges = []Range{{Offset: 2000, Length: 10}, {Offset: size - 1, Length: 100}}
		o := n.ensure(t, r)
		for _, piece := range []int{1, 4} { // the end too: who reads parts checks them
			if err := o.WaitPublished(t.Context(), piece); err != nil {
				t.Fatal(err)
			}
		}
		testenv.Eventually(t, func() bool { return !o.busy() }, "the fetch ends")
		if sent, want := s.sent.Load(), int64(299_000+size-900_000); sent != want || s.headCount() != 0 {
			t.Errorf("node %d: the origin sent %d bytes after %d HEADs, want %d", i, sent, s.headCount(), want)
		}
	}
	whole := s.request()
	whole.Node = "one"
	waitComplete(t, n.ensure(t, whole), s.content)
	if sent := s.sent.Load(); sent != size {
		t.Errorf("the origin sent %d bytes of %d", sent, size)
	}
}

func TestTableThatDoesNotFit(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	r := s.request()
	r.Node, r.Whole, r.Table = "one", false, &task.Table{Length: size - 7, Ends: []int64{1000, 300_000, size - 7}}
	r.Ranges = []Range{{Offset: 2000, Length: 10}}
	o := n.ensure(t, r)
	if got := o.Table(); !got.Equal(task.Uniform(size)) {
		t.Errorf("the table is %+v", got)
	}
	r.Whole = true
	waitComplete(t, n.ensure(t, r), s.content)
}

func TestWhatIsWaitedForComesBeforeWhatIsAhead(t *testing.T) {
	s := newSite(t, size)
	release := make(chan struct{})
	s.intercept = func(_ http.ResponseWriter, _ *http.Request, k int) bool {
		if k > 1 {
			<-release
		}
		return false
	}
	n := newNode(t, nil)
	r := s.request()
	r.Node, r.Whole, r.Ahead = "one", false, true
	r.Ranges = []Range{{Offset: 0, Length: 1}}
	for i := range 10 { // more than there are workers for
		r.Ranges = append(r.Ranges, Range{Offset: int64(2+2*i) * testPiece, Length: 1})
	}
	o := n.ensure(t, r)
	testenv.Eventually(t, func() bool { return len(s.ranges()) >= 2 }, "the workers are busy")
	r.Ahead, r.Ranges = false, []Range{{Offset: 30 * testPiece, Length: 1}}
	n.ensure(t, r)
	first := fmt.Sprintf("bytes=%d-%d", 30*testPiece, 31*testPiece-1)
	testenv.Eventually(t, func() bool { return slices.Contains(s.ranges(), first) }, "the origin is asked for what is waited for")
	if asked := s.ranges(); len(asked) > 4 {
		t.Errorf("the origin was asked for %v before", asked)
	}
	close(release)
	testenv.Eventually(t, func() bool { return !o.busy() }, "the fetch ends")
}

func TestRestartResumes(t *testing.T) {
	for _, byURL := range []bool{false, true} {
		t.Run(fmt.Sprint("by URL ", byURL), func(t *testing.T) {
			s := newSite(t, size)
			s.intercept = func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n > 3 {
					w.WriteHeader(http.StatusNotFound)
				}
				return n > 3
			}
			n := newNode(t, nil)
			r := s.request()
			if byURL {
				r.ID = ""
			}
			o, err := n.Ensure(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			_ = n.events.waitFailed(t)
			testenv.Eventually(t, func() bool { return !o.busy() }, "the fetch ends")
			held := int64(o.t.HeldCount()) * testPiece
			if held == 0 || held >= size {
				t.Fatalf("%d bytes are held before the restart", held)
			}
			n.restart(t)
			s.set(func() { s.intercept = nil })
			s.sent.Store(0)
			waitComplete(t, n.ensure(t, r), s.content)
			extra := int64(0)
			if byURL {
				extra = testSegment // the answer that tells which version it is
			}
			if sent := s.sent.Load(); sent > size-held+extra {
				t.Errorf("the origin sent %d bytes, %d of %d were held", sent, held, size)
			}
		})
	}
}

// All pieces are held, but nobody has checked the whole: as after a crash
// before the last record.
func TestRestartBeforeTheCheck(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	id := s.id()
	st, err := n.store.Create(id, task.Uniform(size), "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range st.Table().Count() {
		_, length := st.Table().Piece(i)
		if _, err := st.WritePiece(t.Context(), i, nil, strings.NewReader(strings.Repeat("x", int(length)))); err != nil {
			t.Fatal(err)
		}
	}
	st.Release()
	last := task.Uniform(size).Count() - 1
	o := n.ensure(t, s.request())
	if set, complete := o.Published(); set.Has(last) || complete {
		t.Error("unchecked content is published to its end")
	}
	testenv.Eventually(t, func() bool { return len(n.events.revocations()) == 1 }, "wrong content is revoked")
}

func TestDiskFull(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		s := newSite(t, size)
		s.chunked = chunked
		n := newNode(t, func(n *node) { n.limit = 1 << 20 })
		o, err := n.Ensure(t.Context(), s.request())
		if err == nil {
			err = n.events.waitFailed(t)
			o.Release()
		}
		if !errors.Is(err, piecestore.ErrFull) || !strings.Contains(err.Error(), "limit") {
			t.Errorf("chunked %v: %v, want ErrFull", chunked, err)
		}
	}
}

func TestAbsurdLength(t *testing.T) {
	s := newSite(t, size)
	s.intercept = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", testSegment-1, uint64(1)<<62))
		w.Header().Set("Content-Length", fmt.Sprint(testSegment))
		w.WriteHeader(http.StatusPartialContent)
		return true
	}
	n := newNode(t, nil)
	if _, err := n.Ensure(t.Context(), s.request()); !errors.Is(err, task.ErrInvalidTable) {
		t.Errorf("%v, want ErrInvalidTable", err)
	}
}

// One origin's wrong word on the length must not keep others from the content.
func TestWrongLengthIsForgotten(t *testing.T) {
	good := newSite(t, size)
	bad := newSite(t, size-1)
	n := newNode(t, nil)
	r := good.request()
	r.URL = bad.URL + path
	o, err := n.Ensure(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, func() bool { return len(n.events.revocations()) > 0 }, "short content is refused")
	o.Release()
	testenv.Eventually(t, func() bool { _, ok := storeHas(n.store, r.ID); return !ok }, "the store forgets the task")
	waitComplete(t, n.ensure(t, good.request()), good.content)
}

func TestPiecesLargerThanSegments(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	r := s.request()
	table := task.Variable([]int64{testSegment * 3, testSegment*3 + 1, size})
	r.Table = &table
	o := n.ensure(t, r)
	if !o.Table().Equal(table) {
		t.Errorf("table %+v", o.Table())
	}
	waitComplete(t, o, s.content)
}
