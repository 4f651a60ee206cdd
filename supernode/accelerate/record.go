package accelerate

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/internal/piecestore"
	"github.com/damselfly-io/damselfly/internal/task"
)

// bucket of the state store. Keys are hashes of repository and image.
const bucket = "accelerated"

// blob is content of an index in the cache.
type blob struct {
	ID   task.ID `json:"id"`
	Size int64   `json:"size"`
}

// record is an accelerated image, as it is stored.
type record struct {
	Base    string        `json:"base"`
	Repo    string        `json:"repo"`
	Subject v1.Descriptor `json:"subject"`
	// Artifact and Signature are manifests, byte for byte.
	Artifact  []byte `json:"artifact"`
	Signature []byte `json:"signature"`
	// Key is the ID of the key that signed.
	Key string `json:"key"`
	// Blobs are the indexes and the blobs that they need; with its size.
	Blobs     []blob    `json:"blobs"`
	Created   time.Time `json:"created"`
	Pushed    bool      `json:"pushed,omitempty"`
	PushError string    `json:"push_error,omitempty"`

	// The rest is derived, and belongs to the Accelerator.
	artifactDesc, signatureDesc v1.Descriptor
	// checked is when all blobs were last found complete; guarded by
	// Accelerator.mu.
	checked time.Time
}

func (r *record) place() place { return place{r.Base, r.Repo} }

// imageKey names an image in a repository.
type imageKey struct {
	place
	subject digest.Digest
}

func (r *record) key() imageKey { return imageKey{r.place(), r.Subject.Digest} }

// String is the key in the store, whose length is bounded.
func (k imageKey) String() string {
	sum := sha256.Sum256([]byte(k.base + "\x00" + k.repo + "\x00" + string(k.subject)))
	return hex.EncodeToString(sum[:])
}

func (r *record) bytes() (total int64) {
	for _, b := range r.Blobs {
		total += b.Size
	}
	return total
}

// derive fills in what follows from the manifests.
func (r *record) derive() error {
	a, err := artifact.Decode(r.Artifact, artifact.ArtifactType)
	if err != nil {
		return err
	}
	s, err := artifact.Decode(r.Signature, artifact.SignatureType)
	if err != nil {
		return err
	}
	r.artifactDesc, r.signatureDesc = describe(r.Artifact, a), describe(r.Signature, s)
	if a.Subject.Digest != r.Subject.Digest || s.Subject.Digest != r.artifactDesc.Digest || len(r.Blobs) == 0 {
		return errors.New("it does not fit together")
	}
	return nil
}

// describe returns what a list of referrers has of a manifest.
func describe(data []byte, m *v1.Manifest) v1.Descriptor {
	return v1.Descriptor{
		MediaType: m.MediaType, ArtifactType: m.ArtifactType,
		Digest: digest.FromBytes(data), Size: int64(len(data)), Annotations: m.Annotations,
	}
}

// name is what a manifest is asked for by.
type name struct {
	place
	reference string
}

// named is the manifest that a name stands for.
type named struct {
	rec  *record
	desc v1.Descriptor
	data []byte
}

// table finds records. Its user locks.
type table struct {
	images map[imageKey]*record
	// names are the digests and tags of artifacts and signatures, referrers what
	// refers to a digest, and fallback the same by the tag for lists.
	names     map[name]named
	referrers map[name]named
	fallback  map[name]digest.Digest
	blobs     map[task.ID]map[*record]struct{}
}

func newTable() *table {
	return &table{
		images: map[imageKey]*record{}, names: map[name]named{}, referrers: map[name]named{},
		fallback: map[name]digest.Digest{}, blobs: map[task.ID]map[*record]struct{}{},
	}
}

// entries returns the manifests of r with their tags.
func (r *record) entries() []entry {
	return []entry{
		{named{r, r.artifactDesc, r.Artifact}, r.Subject.Digest, artifact.Tag(r.Subject.Digest)},
		{named{r, r.signatureDesc, r.Signature}, r.artifactDesc.Digest, artifact.SignatureTag(r.artifactDesc.Digest, r.Key)},
	}
}

type entry struct {
	named
	subject digest.Digest
	tag     string
}

func (t *table) add(r *record) {
	p := r.place()
	t.images[r.key()] = r
	for _, e := range r.entries() {
		t.names[name{p, e.desc.Digest.String()}] = e.named
		t.names[name{p, e.tag}] = e.named
		t.referrers[name{p, e.subject.String()}] = e.named
		t.fallback[name{p, artifact.FallbackTag(e.subject)}] = e.subject
	}
	for _, b := range r.Blobs {
		if t.blobs[b.ID] == nil {
			t.blobs[b.ID] = map[*record]struct{}{}
		}
		t.blobs[b.ID][r] = struct{}{}
	}
}

// remove takes r out and returns the blobs that no other record needs.
func (t *table) remove(r *record) (unused []task.ID) {
	p := r.place()
	delete(t.images, r.key())
	for _, e := range r.entries() {
		delete(t.names, name{p, e.desc.Digest.String()})
		delete(t.names, name{p, e.tag})
		delete(t.referrers, name{p, e.subject.String()})
		delete(t.fallback, name{p, artifact.FallbackTag(e.subject)})
	}
	for _, b := range r.Blobs {
		delete(t.blobs[b.ID], r)
		if len(t.blobs[b.ID]) == 0 {
			delete(t.blobs, b.ID)
			unused = append(unused, b.ID)
		}
	}
	return unused
}

// needing returns the record of a repository that needs a blob, nil if none
// does.
func (t *table) needing(p place, id task.ID) (*record, int64) {
	for r := range t.blobs[id] {
		if r.place() != p {
			continue
		}
		for _, b := range r.Blobs {
			if b.ID == id {
				return r, b.Size
			}
		}
	}
	return nil, 0
}

// save stores r.
func (a *Accelerator) save(r *record) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = a.o.State.Put(bucket, r.key().String(), data)
	}
	if err != nil {
		return fmt.Errorf("storing the index of %s: %w", r.place(), err)
	}
	return nil
}

// load reads the records whose blobs are all held and forgets the others.
func (a *Accelerator) load(held []piecestore.Info) error {
	whole := map[task.ID]bool{}
	for _, i := range held {
		whole[i.ID] = i.Complete
	}
	whole[emptyID] = true // Run puts it back
	return a.o.State.ForEach(bucket, func(key string, data []byte) error {
		r := &record{}
		err := json.Unmarshal(data, r)
		if err == nil {
			err = r.derive()
		}
		switch {
		case err != nil:
		case r.Key != a.key.ID():
			err = fmt.Errorf("it is signed by key %s, which is not the supernode's any more", r.Key)
		case slices.ContainsFunc(r.Blobs, func(b blob) bool { return !whole[b.ID] }):
			err = errors.New("the cache does not have all of it any more")
		}
		if err != nil {
			a.o.Log.Warn("an accelerated image is forgotten", "repository", r.place().String(), "image", r.Subject.Digest.String(), "error", err)
			return a.o.State.Delete(bucket, key)
		}
		r.checked = a.o.Now()
		a.table.add(r)
		return nil
	})
}
