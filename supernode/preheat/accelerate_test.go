package preheat

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/supernode/state"
)

// fakeAccelerator answers by digest; what has no answer blocks.
type fakeAccelerator struct {
	mu      sync.Mutex
	asked   []AcceleratedImage
	answers map[string]error
	block   bool
	begun   chan struct{} // room for many
}

func (f *fakeAccelerator) Accelerate(ctx context.Context, img AcceleratedImage) (string, int64, error) {
	f.mu.Lock()
	f.asked = append(f.asked, img)
	err, block := f.answers[img.Digest], f.block
	f.mu.Unlock()
	f.begun <- struct{}{}
	if block {
		<-ctx.Done()
		return "", 0, ctx.Err()
	}
	return "sha256:index", 42, err
}

func (b *bench) reopen(a *fakeAccelerator) {
	b.open(func(o *Options) {
		fromOrigin(o)
		o.Accelerator, o.Retry = a, time.Millisecond
	})
	b.start()
}

func TestJobsAccelerate(t *testing.T) {
	r := newRegistry(t, "user", password)
	a := &fakeAccelerator{answers: map[string]error{r.single: errors.New("cannot be converted with " + password)}, begun: make(chan struct{}, 10)}
	b := &bench{t: t, tracker: newFakeTracker(), state: state.NewMemory(), stop: func() {}}
	b.reopen(a)
	b.submit(Request{Type: TypeImage, Ref: r.host + "/app", Platforms: []string{"all"}, Accelerate: true,
		Credentials: &Credentials{Username: "user", Password: password}})
	j := b.last(1)
	if j.State != Succeeded || j.Error != "" || !j.Accelerate || len(j.Acceleration) != 2 {
		t.Fatalf("%+v", j)
	}
	for _, row := range j.Acceleration {
		failed := row.Image == r.single
		if failed && (row.State != Failed || !strings.Contains(row.Error, "cannot be converted") || strings.Contains(row.Error, password)) ||
			!failed && (row.State != Succeeded || row.Index != "sha256:index" || row.Bytes != 42 || row.Error != "") {
			t.Errorf("%+v", row)
		}
	}
	if got := a.asked[0]; got.Base != r.url || got.Repo != "app" || got.Credential.Password != password {
		t.Errorf("asked for %+v", got)
	}
	if _, err := b.Submit(Request{Type: TypeFile, URL: r.url, Accelerate: true}); err == nil {
		t.Error("a file can be accelerated")
	}
	b.stop()
	b.reopen(a)
	if again := b.get(1); len(again.Acceleration) != 2 || again.Acceleration[1] != j.Acceleration[1] {
		t.Errorf("after a restart: %+v", again.Acceleration)
	}
	b.stop()
	b.open(nil)
	if _, err := b.Submit(Request{Type: TypeImage, Ref: r.host + "/app", Accelerate: true}); err == nil || !strings.Contains(err.Error(), "accelerate") {
		t.Errorf("without an accelerator: %v", err)
	}
}

func TestAccelerationThatIsCutOff(t *testing.T) {
	r := newRegistry(t, "", "")
	req := Request{Type: TypeImage, Ref: r.host + "/app@" + r.single, Accelerate: true}
	a := &fakeAccelerator{block: true, begun: make(chan struct{}, 10)}
	b := &bench{t: t, tracker: newFakeTracker(), state: state.NewMemory(), stop: func() {}}
	b.reopen(a)

	b.submit(req)
	<-a.begun
	if _, err := b.Cancel(1); err != nil {
		t.Fatal(err)
	}
	if j := b.last(1); j.State != Cancelled || j.Acceleration[0].State != Cancelled {
		t.Errorf("cancelled: %s %+v", j.State, j.Acceleration)
	}

	short := req
	short.Timeout = Duration(time.Second)
	b.submit(short)
	<-a.begun
	if j := b.last(2); j.State != Succeeded || j.Acceleration[0].State != TimedOut || j.Acceleration[0].Error == "" {
		t.Errorf("timed out: %s %+v", j.State, j.Acceleration)
	}

	b.submit(req)
	<-a.begun
	b.stop()
	a.block = false
	b.reopen(a)
	if j := b.last(3); j.State != Succeeded || j.Acceleration[0].State != Succeeded {
		t.Errorf("after a restart: %s %+v", j.State, j.Acceleration)
	}
}
