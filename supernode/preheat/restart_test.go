package preheat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/supernode/state"
)

func TestJobsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil, "n1", "n2")
		b.cache.sizes[fileID] = fileSize
		b.start()
		b.submit(fileRequest(Scope{Percent: 100}))
		b.submit(fileRequest(Scope{}))
		synctest.Wait()
		b.cache.advance(fileID, 3)
		pass(time.Second)
		b.stop()

		b.open(nil)
		b.cache.sizes[fileID] = fileSize
		if j := b.get(1); j.State != Running || j.Scope.Percent != 100 {
			t.Errorf("after the restart: %+v", j)
		}
		b.tracker.connect("n3", true) // was not chosen
		b.tracker.obedient(func(task.ID) int64 { return fileSize })
		b.start()
		synctest.Wait()
		b.cache.finish(fileID)
		j := b.last(1)
		if j.State != Succeeded || j.Totals.PeersDone != 2 || j.Totals.PeersTotal != 2 {
			t.Errorf("%s %s: %+v", j.State, j.Error, j.Totals)
		}
		if j := b.last(2); j.State != Succeeded {
			t.Errorf("%s %s", j.State, j.Error)
		}
		if next := b.submit(fileRequest(Scope{})); next.ID != 3 {
			t.Errorf("the next job is %d, want 3", next.ID)
		}
		b.stop()
		b.open(nil)
		got, err := json.Marshal(b.get(1))
		want, werr := json.Marshal(j)
		if err != nil || werr != nil || !bytes.Equal(got, want) {
			t.Errorf("stored %s, want %s", got, want)
		}
	})
}

func TestUnreadableRecordsAreLeftAlone(t *testing.T) {
	s := state.NewMemory()
	for k, v := range map[string]string{key(7): "{", "x": "{}", key(8): `{"job":{"id":9}}`} {
		if err := s.Put(bucket, k, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	b := &bench{t: t, tracker: newFakeTracker(), state: s}
	b.open(nil)
	if j := b.submit(fileRequest(Scope{})); j.ID != 9 {
		t.Errorf("id %d, want 9", j.ID)
	}
	if v, err := s.Get(bucket, key(7)); err != nil || string(v) != "{" {
		t.Errorf("record 7 is %q, %v", v, err)
	}
}

// secrets of the tests below; none may be found anywhere.
const (
	password  = "hunter2-password"
	signature = "hunter2-signature"
)

func TestSecretsAreNowhere(t *testing.T) {
	r := newRegistry(t, "user", password)
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := state.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	b := &bench{t: t, tracker: newFakeTracker("n"), state: db}
	b.tracker.obedient(func(id task.ID) int64 { return b.cache.objects[id].table.Length })
	options := func(o *Options) {
		fromOrigin(o)
		o.Retry = time.Millisecond
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
	}
	b.open(options)
	b.start()
	image := Request{Type: TypeImage, Ref: r.host + "/app", Platforms: []string{"all"}, Scope: Scope{AllPeers: true}}
	image.Credentials = &Credentials{Username: "user", Password: password}
	b.submit(image)
	b.submit(Request{Type: TypeFile, URL: r.url + "/v2/?X-Amz-Signature=" + signature, Credentials: &Credentials{Authorization: "Bearer " + password}})
	var shown []byte
	for id, want := range map[int64]State{1: Succeeded, 2: Failed} {
		j := b.last(id)
		if j.State != want {
			t.Errorf("job %d %s: %s", id, j.State, j.Error)
		}
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, b...)
	}
	if j := b.get(1); j.Digest != r.index || len(j.Blobs) != 5 || j.Totals.PeersDone != 1 {
		t.Errorf("image: %+v", j)
	}
	b.stop()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	basic := "dXNlcjpodW50ZXIyLXBhc3N3b3Jk"
	for where, text := range map[string][]byte{"store": stored, "answers": shown, "log": log.Bytes()} {
		for _, secret := range []string{password, signature, basic} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("the %s has %q", where, secret)
			}
		}
	}
	for _, o := range b.tracker.orders {
		if s := fmt.Sprintf("%+v", o.src); strings.Contains(s, password) || o.src.Credential.Password != "" {
			t.Errorf("a node was told a secret: %s", s)
		}
	}
}

func TestSecretsAreLostInARestart(t *testing.T) {
	r := newRegistry(t, "user", password)
	b := &bench{t: t, tracker: newFakeTracker(), state: state.NewMemory()}
	b.open(nil)
	withPassword := &Credentials{Username: "user", Password: password}
	b.submit(Request{Type: TypeImage, Ref: r.host + "/app", Credentials: withPassword, Platforms: []string{"linux/amd64"}})
	b.submit(Request{Type: TypeFile, URL: r.url + "/v2/?sig=" + signature})
	b.submit(Request{Type: TypeImage, Ref: r.host + "/app", Platforms: []string{"linux/amd64"}})

	b.open(fromOrigin)
	b.start()
	for id, want := range map[int64]string{1: "submit the job again", 2: "submit the job again", 3: "401"} {
		j := b.last(id)
		if j.State != Failed || !strings.Contains(j.Error, want) || id == 3 && strings.Contains(j.Error, "again") {
			t.Errorf("job %d %s: %s; want …%s…", id, j.State, j.Error, want)
		}
	}
}

func TestResolvedImagesAreNotResolvedAgain(t *testing.T) {
	r := newRegistry(t, "", "")
	b := newBench(t, fromOrigin)
	b.cache.origin = nil // blobs are not there yet
	b.start()
	b.submit(Request{Type: TypeImage, Ref: r.host + "/app", Platforms: []string{"linux/amd64"}})
	c, err := b.Watch(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for j := range c {
		if len(j.Blobs) > 0 {
			break
		}
	}
	b.stop()
	r.manifest(func(string) string { return "latest" }, "application/vnd.oci.image.index.v1+json", map[string]any{"manifests": []desc{}})
	b.open(fromOrigin)
	b.start()
	if j := b.last(1); j.State != Succeeded || j.Digest != r.index || len(j.Blobs) != 3 || j.Blobs[0].Digest != r.amd64[0] {
		t.Errorf("%s %s: %+v", j.State, j.Error, j)
	}
}

func TestOutcomesOfForgottenCommandsAreNoSuccess(t *testing.T) {
	r := &run{m: &Manager{o: Options{Tracker: newFakeTracker("n")}}, ctx: t.Context()}
	b := &blob{id: fileID, row: Blob{Size: 1, State: Succeeded}}
	b.newPeers([]string{"n"})
	r.lookAtPeers(b, false)
	if p := b.peers[0]; p.row.State != Running {
		t.Errorf("state %s", p.row.State)
	}
}
