package cdn

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

func (s *site) urlRequest() Request { return Request{URL: s.URL + "/file", Whole: true} }

func TestURLUnchanged(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	first := n.ensure(t, s.urlRequest())
	waitComplete(t, first, s.content)
	gets := len(s.ranges())
	again := n.ensure(t, s.urlRequest())
	if again.ID() != first.ID() || s.headCount() != 0 {
		t.Errorf("at once: %s and %s, %d HEADs", first.ID(), again.ID(), s.headCount())
	}
	n.advance(time.Minute)
	again = n.ensure(t, s.urlRequest())
	if again.ID() != first.ID() || len(s.ranges()) != gets {
		t.Errorf("later: %s and %s, %d GETs more", first.ID(), again.ID(), len(s.ranges())-gets)
	}
	if want := task.URLID(s.urlRequest().URL, `"v1"`, "", size); first.ID() != want {
		t.Errorf("id %s, want %s", first.ID(), want)
	}
}

func TestURLKeepsItsDescription(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	o, err := n.Ensure(t.Context(), s.urlRequest())
	if err != nil {
		t.Fatal(err)
	}
	waitComplete(t, o, s.content)
	o.Release()
	testenv.Eventually(t, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.objects) == 0 }, "the object leaves memory")
	for _, pause := range []time.Duration{0, time.Minute} {
		n.advance(pause)
		o, err := n.Ensure(t.Context(), s.urlRequest())
		if err != nil {
			t.Fatal(err)
		}
		if m := o.Meta(); m.ETag != `"v1"` || m.ContentType != "application/test" {
			t.Errorf("after %v described as %+v", pause, m)
		}
		o.Release()
	}
}

func TestURLChanged(t *testing.T) {
	s := newSite(t, size)
	n := newNode(t, nil)
	old := n.ensure(t, s.urlRequest())
	oldContent := s.content
	waitComplete(t, old, oldContent)
	s.set(func() {
		s.content = append([]byte("new"), s.content[3:]...)
		s.etag = `"v2"`
	})
	n.advance(time.Minute)
	fresh := n.ensure(t, s.urlRequest())
	if fresh.ID() == old.ID() {
		t.Fatal("changed content has the id of the old")
	}
	waitComplete(t, fresh, s.content)
	waitComplete(t, old, oldContent)
}

func TestURLWithoutValidators(t *testing.T) {
	s := newSite(t, size)
	s.etag = ""
	n := newNode(t, nil)
	first := n.ensure(t, s.urlRequest())
	waitComplete(t, first, s.content)
	n.advance(time.Minute)
	if again := n.ensure(t, s.urlRequest()); again.ID() == first.ID() {
		t.Error("content that may have changed is taken for the same")
	}
}

// Pieces of two versions must not be mixed under one name.
func TestURLChangesWhileFetched(t *testing.T) {
	s := newSite(t, size)
	s.intercept = func(_ http.ResponseWriter, _ *http.Request, k int) bool {
		if k == 2 {
			s.set(func() {
				s.content = append([]byte(nil), s.content...)
				for i := range s.content {
					s.content[i] ^= 0xff
				}
				s.etag = `"v2"`
			})
		}
		return false
	}
	n := newNode(t, nil)
	o := n.ensure(t, s.urlRequest())
	if err := n.events.waitFailed(t); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("failed because %v, want ErrChanged", err)
	}
	if _, complete := o.Published(); complete {
		t.Error("the object is complete")
	}
}

// The name of a URL's content cannot be given to that of another URL.
func TestURLNameIsChecked(t *testing.T) {
	victim, evil := newSite(t, size), newSite(t, size)
	evil.set(func() { evil.content = append([]byte("evil"), evil.content[4:]...) })
	id := task.URLID(victim.urlRequest().URL, `"v1"`, "", size)
	n := newNode(t, nil)
	r := evil.urlRequest()
	r.ID, r.Authorized = id, true
	if o, err := n.Ensure(t.Context(), r); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("other content under the name: %v, %v", o, err)
	}
	r.Whole, r.Ranges = false, []Range{{Offset: testSegment, Length: 1}}
	if o, err := n.Ensure(t.Context(), r); !errors.Is(err, origin.ErrChanged) {
		t.Errorf("other content under the name, by ranges: %v, %v", o, err)
	}
	// Nor can it be mixed in when the object exists.
	good := victim.urlRequest()
	good.Whole, good.Ranges = false, []Range{{Offset: 0, Length: 1}}
	n.ensure(t, good)
	r.Whole = true
	waitComplete(t, n.ensure(t, r), victim.content)
	good.ID, good.Authorized = id, true
	waitComplete(t, n.ensure(t, good), victim.content)
}
