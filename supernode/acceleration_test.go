package supernode

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
	"github.com/damselfly-io/damselfly/internal/imageindex/indextest"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/cdn"
	"github.com/damselfly-io/damselfly/supernode/preheat"
)

func TestPreheatAccelerates(t *testing.T) {
	for _, api := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrers API %v", api), func(t *testing.T) {
			reg := newRegistryLog(t, api)
			r := newRig(t, reg, nil)
			img := testImage(t)
			ref := reg.Put("team/app:v1", img)
			before := reg.Uploaded()
			j := r.accelerated(preheat.Request{Ref: ref})
			if j.State != preheat.Succeeded || len(j.Acceleration) != 1 {
				t.Fatalf("%+v", j)
			}
			row := j.Acceleration[0]
			if row.State != preheat.Succeeded || row.Image != digestOf(t, img) || row.Index == "" || row.Bytes < 500<<10 || row.Error != "" {
				t.Errorf("%+v", row)
			}
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				d, err := l.Digest()
				if err != nil {
					t.Fatal(err)
				}
				size, err := l.Size()
				if n := reg.sent["/v2/team/app/blobs/"+d.String()]; err != nil || n != size {
					t.Errorf("%d bytes of layer %s were read from the registry, it has %d, %v", n, d, size, err)
				}
			}
			if err := r.verify(ref, ""); err != nil {
				t.Errorf("the index cannot be used: %v", err)
			}
			if _, _, err := r.find(ref, "", &trust.Policy{}); err == nil || !strings.Contains(err.Error(), "not trust") {
				t.Errorf("without the key: %v", err)
			}
			if reg.Uploaded() != before {
				t.Error("the registry was pushed to")
			}
			if left := r.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			again := r.accelerated(preheat.Request{Ref: ref})
			if len(again.Acceleration) != 1 || again.Acceleration[0] != row {
				t.Errorf("again: %+v", again.Acceleration)
			}
		})
	}
}

func TestRegistrysOwnReferrersStay(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, nil)
	img := testImage(t)
	ref := reg.Put("app:v1", img)
	key, err := trust.Generate()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := image.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(t.Context(), parsed, image.Options{Keychain: noKeys{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	theirs, err := imageindex.Convert(t.Context(), src, parsed, imageindex.ConvertOptions{Key: key, Dir: t.TempDir(), Image: image.Options{Keychain: noKeys{}}})
	if err != nil {
		t.Fatal(err)
	}
	// Equal content gives equal artifacts: then only the signature differs.
	j := r.accelerated(preheat.Request{Ref: ref})
	if j.Acceleration[0].State != preheat.Succeeded {
		t.Fatalf("%+v", j.Acceleration)
	}
	base := "http://" + reg.Host + "/v2/app/"
	for subject, want := range map[string]int{digestOf(t, img): 1, theirs[0].Artifact: 2} {
		a, err := r.exchange.Do(t.Context(), "GET", base+"referrers/"+subject, http.Header{})
		var list v1.Index
		if err != nil || a.Status != 200 || json.Unmarshal(a.Body, &list) != nil || len(list.Manifests) != want {
			t.Errorf("%s: %+v %s, %v", subject, a, a.Body, err)
		}
	}
	if err := r.verify(ref, ""); err != nil {
		t.Error(err)
	}
	both, err := r.policy().With(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.find(ref, "", both); err != nil {
		t.Error(err)
	}
}

func TestOnlyWhomTheRegistryLetsIn(t *testing.T) {
	for _, api := range []bool{true, false} {
		reg := newRegistryLog(t, api)
		r := newRig(t, reg, nil)
		img := testImage(t)
		ref := reg.Put("private/app:v1", img)
		const mine = "Basic dXNlcjpwYXNzd29yZA==" // user:password
		reg.set(func() { reg.allow = mine })
		j := r.accelerated(preheat.Request{Ref: ref, Credentials: &preheat.Credentials{Username: "user", Password: "password"}})
		if len(j.Acceleration) != 1 || j.Acceleration[0].State != preheat.Succeeded {
			t.Fatalf("%+v", j)
		}
		if err := r.verify(ref, mine); err != nil {
			t.Errorf("who may read: %v", err)
		}
		loaded, _, err := r.find(ref, mine, r.policy())
		if err != nil {
			t.Fatal(err)
		}
		base := "http://" + reg.Host + "/v2/private/app/"
		data := loaded.Artifact.Blobs[0].Digest.String()
		for _, auth := range []string{"", "Basic b3RoZXI6cGFzc3dvcmQ="} {
			h := http.Header{}
			if auth != "" {
				h.Set("Authorization", auth)
			}
			for _, ask := range []string{
				"GET referrers/" + digestOf(t, img), "GET manifests/" + j.Acceleration[0].Index, "HEAD manifests/" + j.Acceleration[0].Index,
				"GET manifests/" + artifact.Tag(loaded.Artifact.Subject.Digest), "GET manifests/" + artifact.FallbackTag(loaded.Artifact.Subject.Digest),
				"HEAD blobs/" + data, "HEAD blobs/" + loaded.Artifact.Layers[0].Index.Digest.String(),
			} {
				method, path, _ := strings.Cut(ask, " ")
				a, err := r.exchange.Do(t.Context(), method, base+path, h)
				if err != nil || a.Status != http.StatusUnauthorized || a.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s as %q: %+v, %v", ask, auth, a, err)
				}
			}
			o, err := r.cache.Ensure(t.Context(), cdn.Request{ID: task.ID(data), URL: base + "blobs/" + data, Credential: origin.Credential{Authorization: auth}})
			if err == nil {
				o.Release()
				t.Errorf("%q gets the blob", auth)
			}
		}
		// The right to another repository is none to this one's.
		other := "http://" + reg.Host + "/v2/other/blobs/" + data
		if o, err := r.cache.Ensure(t.Context(), cdn.Request{ID: task.ID(data), URL: other, Credential: origin.Credential{Authorization: mine}}); err == nil {
			o.Release()
			t.Error("the blob is there in another repository")
		}
	}
}

func TestRestartKeepsWhatIsAccelerated(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, nil)
	ref := reg.Put("app:v1", testImage(t))
	j := r.accelerated(preheat.Request{Ref: ref})
	want := r.accelerate.List()
	pem, _ := r.accelerate.PublicKey()
	reg.set(func() { reg.down = true })
	r.restart()
	if got := r.accelerate.List(); len(got) != 1 || got[0] != want[0] || got[0].Index != j.Acceleration[0].Index {
		t.Fatalf("after the restart: %+v, want %+v", got, want)
	}
	if again, _ := r.accelerate.PublicKey(); string(again) != string(pem) {
		t.Error("there is another key")
	}
	if a, err := r.exchange.Do(t.Context(), "GET", "http://"+reg.Host+"/v2/app/manifests/"+want[0].Index, http.Header{}); err == nil && a.Status == http.StatusOK {
		t.Error("somebody is let in without the registry's word")
	}
	reg.set(func() { reg.down = false; clear(reg.gets) })
	if err := r.verify(ref, ""); err != nil {
		t.Error(err)
	}
	if n := reg.read("/blobs/"); n > 1 { // the image's configuration, by the node
		t.Errorf("%d blobs were read from the registry", n)
	}
}

func TestEvictionEndsTheOffer(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, nil)
	img := testImage(t)
	ref := reg.Put("app:v1", img)
	r.accelerated(preheat.Request{Ref: ref})
	loaded, _, err := r.find(ref, "", r.policy())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Remove(task.ID(loaded.Artifact.Blobs[0].Digest.String())); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.find(ref, "", r.policy()); err == nil || !strings.Contains(err.Error(), imageindex.ErrNoIndex.Error()) {
		t.Errorf("after a blob was dropped: %v", err)
	}
	r.restart()
	if got := r.accelerate.List(); len(got) != 0 {
		t.Errorf("after a restart: %+v", got)
	}
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if j := r.accelerated(preheat.Request{Ref: ref}); j.Acceleration[0].State != preheat.Succeeded {
		t.Errorf("again: %+v", j.Acceleration)
	}
	if err := r.verify(ref, ""); err != nil {
		t.Error(err)
	}
	if removed, err := r.accelerate.Remove(digestOf(t, img)); err != nil || len(removed) != 1 {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left behind after the removal: %v", left)
	}
	if _, err := r.accelerate.Remove(digestOf(t, img)); err == nil {
		t.Error("removed twice")
	}
}

func TestConversionThatIsCutOffLeavesNothing(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, nil)
	img := testImage(t)
	reg.Put("app:v1", img)
	block := make(chan struct{})
	reg.set(func() { reg.block = block })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := r.accelerate.Accelerate(ctx, accelerate.Image{Base: "http://" + reg.Host, Repo: "app", Digest: digestOf(t, img)})
		ended <- err
	}()
	for reg.read("/blobs/") == 0 {
		runtime.Gosched()
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("a conversion that was cut off succeeded")
	}
	close(block)
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// A process that dies leaves what nobody has cleaned up.
	r.stop()
	work := filepath.Join(r.config.DataDir, "accelerate", "work", "image-1", "blobs")
	if err := os.MkdirAll(work, 0o700); err != nil {
		t.Fatal(err)
	}
	r.start()
	half := []byte("half of an index")
	id := task.ID(chunkfmt.Sum(half).String())
	if err := r.cache.Import(t.Context(), id, task.Uniform(int64(len(half))), "accelerated app", strings.NewReader(string(half))); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if left := r.leftovers(); len(left) > 0 {
		t.Errorf("left behind by a process that died: %v", left)
	}
}

func TestWhatCannotBeConverted(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, nil)
	good := indextest.Layer(t, indextest.Files{"a": "b"}.Tar(t))
	foreign, err := mutate.Append(testImage(t), mutate.Addendum{Layer: good, MediaType: types.OCIRestrictedLayer})
	if err != nil {
		t.Fatal(err)
	}
	config := ggcr.ConfigFile{OS: "linux", Architecture: runtime.GOARCH}
	for name, c := range map[string]struct {
		img  ggcr.Image
		says string
	}{
		"empty":   {indextest.ImageOf(t, config), "no layers"},
		"no tar":  {indextest.ImageOf(t, config, static.NewLayer([]byte(indextest.Noise(9, 5000)), types.OCILayer)), "layer"},
		"foreign": {foreign, "foreign layer"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := reg.Put("bad:"+strings.ReplaceAll(name, " ", "-"), c.img)
			j := r.accelerated(preheat.Request{Ref: ref})
			if j.State != preheat.Succeeded || j.Error != "" || len(j.Acceleration) != 1 {
				t.Fatalf("%+v", j)
			}
			row := j.Acceleration[0]
			if row.State != preheat.Failed || !strings.Contains(row.Error, c.says) || row.Index != "" {
				t.Errorf("%+v, want an error with %q", row, c.says)
			}
			t.Log(row.Error)
			if left := r.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestListedRepositoriesAreConvertedWhenPulled(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, func(c *Config) { c.AccelerateRepositories = []string{reg.Host + "/team/*"} })
	img := testImage(t)
	ref := reg.Put("team/app:v1", img)
	reg.Put("other/app:v1", img)
	for _, repo := range []string{"other/app", "team/app"} {
		a, err := r.exchange.Do(t.Context(), "GET", "http://"+reg.Host+"/v2/"+repo+"/manifests/v1", http.Header{"Accept": {string(types.OCIManifestSchema1), string(types.DockerManifestSchema2)}})
		if err != nil || a.Status != http.StatusOK {
			t.Fatalf("%s: %+v, %v", repo, a, err)
		}
	}
	// Equal calls share the conversion that is under way, or its result.
	info, err := r.accelerate.Accelerate(t.Context(), accelerate.Image{Base: "http://" + reg.Host, Repo: "team/app", Digest: digestOf(t, img)})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.accelerate.List(); len(got) != 1 || got[0] != info {
		t.Errorf("accelerated: %+v", got)
	}
	if err := r.verify(ref, ""); err != nil {
		t.Error(err)
	}
}

func TestPushToTheRegistry(t *testing.T) {
	reg := newRegistryLog(t, false)
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, []byte(`{"auths":{"`+reg.Host+`":{"username":"user","password":"password"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, reg, func(c *Config) { c.DockerConfig, c.AcceleratePush = config, true })
	ref := reg.Put("app:v1", testImage(t))
	const mine = "Basic dXNlcjpwYXNzd29yZA=="
	reg.set(func() { reg.allow = mine })
	if j := r.accelerated(preheat.Request{Ref: ref}); j.Acceleration[0].State != preheat.Succeeded {
		t.Fatalf("%+v", j.Acceleration)
	}
	if got := r.accelerate.List(); len(got) != 1 || !got[0].Pushed || got[0].PushError != "" {
		t.Fatalf("%+v", got)
	}
	if _, err := r.accelerate.Remove(r.accelerate.List()[0].Digest); err != nil {
		t.Fatal(err)
	}
	if err := r.verify(ref, mine); err != nil {
		t.Errorf("what was pushed: %v", err)
	}
}

func TestOwnCredentialOnlyWhereItMayBeUsed(t *testing.T) {
	reg := newRegistryLog(t, true)
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, []byte(`{"auths":{"`+reg.Host+`":{"username":"user","password":"password"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, reg, func(c *Config) { c.DockerConfig = config })
	img := testImage(t)
	reg.Put("app:v1", img)
	reg.set(func() { reg.allow = "Basic dXNlcjpwYXNzd29yZA==" })
	ask := accelerate.Image{Base: "http://" + reg.Host, Repo: "app", Digest: digestOf(t, img), Credential: origin.Credential{Authorization: "Bearer ended"}}
	if _, err := r.accelerate.Accelerate(t.Context(), ask); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with a token that has ended: %v", err)
	}
	ask.OwnToo = true
	if _, err := r.accelerate.Accelerate(t.Context(), ask); err != nil {
		t.Error(err)
	}
}

func TestSharedConfigurationComesBack(t *testing.T) {
	reg := newRegistryLog(t, true)
	r := newRig(t, reg, nil)
	ref := reg.Put("app:v1", testImage(t))
	r.accelerated(preheat.Request{Ref: ref})
	empty := task.ID(artifact.Empty().Digest)
	if err := r.store.Remove(empty); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, func() bool {
		held, ok := r.store.Get(empty)
		if !ok {
			return false
		}
		defer held.Release()
		return held.Complete()
	}, "the configuration of artifacts to come back")
	if err := r.verify(ref, ""); err != nil {
		t.Error(err)
	}
}
