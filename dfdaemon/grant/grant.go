// Package grant remembers which manifests clients of this node were let into.
//
// A grant says: with a certain credential, the registry has given out this
// manifest of this repository. While the registry cannot be asked, a grant lets
// the same credential have the manifest and its blobs again, and programs on the
// node's socket, which have no credentials, may read the blobs of granted
// manifests at any time.
//
// Grants of anonymous access are kept on disk and survive a restart. Those of
// other credentials are kept by an opaque key that lives as long as the process:
// after a restart they still serve the node's own socket, but no client of the
// mirror. No credential is ever written to disk. What the node itself was given,
// under NodeKey, serves its own programs only.
//
// A grant ends when it was not used for the store's TTL.
package grant

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Manifest is what a grant gives access to.
type Manifest struct {
	Registry  string    `json:"registry"`
	Repo      string    `json:"repo"`
	Tag       string    `json:"tag,omitempty"` // the latest that led to it
	Digest    string    `json:"digest"`
	MediaType string    `json:"media_type"`
	Body      []byte    `json:"body"`
	Anonymous bool      `json:"anonymous"`
	Used      time.Time `json:"used"`
}

// maxBody bounds a manifest that is granted, in bytes.
const maxBody = 4 << 20

// Store keeps grants. It is safe for concurrent use.
type Store struct {
	dir string
	ttl time.Duration
	now func() time.Time

	mu     sync.Mutex
	grants map[string]*held  // by registry, repository and digest
	tags   map[string]string // tags of manifests that are not granted yet, by the same
}

// maxTags bounds Store.tags; at the bound all are forgotten.
const maxTags = 10_000

// held is one grant in memory.
type held struct {
	m     Manifest
	blobs map[task.ID]bool
	creds map[string]bool // keys of the credentials that were let in
}

// anonymousKey stands for no credential in held.creds.
const anonymousKey = ""

// NodeKey is the credKey of what the registry gave to the node itself. No client
// of the mirror has it: such a grant serves the node's own programs only.
const NodeKey = "node"

// Open reads the grants in dir, which is made. Grants not used for ttl are
// dropped, unreadable ones too.
func Open(dir string, ttl time.Duration, now func() time.Time) (*Store, error) {
	if now == nil {
		now = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening grants: %w", err)
	}
	s := &Store{dir: dir, ttl: ttl, now: now, grants: map[string]*held{}, tags: map[string]string{}}
	if err := s.clean(); err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("opening grants: %w", err)
	}
	for _, name := range names {
		m, err := read(name)
		if err != nil || now().Sub(m.Used) > ttl {
			if err := os.Remove(name); err != nil {
				return nil, fmt.Errorf("dropping a grant: %w", err)
			}
			continue
		}
		h := &held{m: m, blobs: blobsOf(m.Body), creds: map[string]bool{}}
		if m.Anonymous {
			h.creds[anonymousKey] = true
		}
		s.grants[key(m.Registry, m.Repo, m.Digest)] = h
	}
	return s, nil
}

// tempName is the pattern of files that are being written.
const tempName = "grant-*"

// clean removes what a process that was killed has left half written.
func (s *Store) clean() error {
	names, err := filepath.Glob(filepath.Join(s.dir, tempName))
	if err != nil {
		return fmt.Errorf("opening grants: %w", err)
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("dropping a half-written grant: %w", err)
		}
	}
	return nil
}

func read(name string) (Manifest, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, err
	}
	if digest.FromBytes(m.Body).String() != m.Digest {
		return Manifest{}, errors.New("manifest does not match its digest")
	}
	return m, nil
}

func key(registry, repo, digest string) string { return registry + "\x00" + repo + "\x00" + digest }

func (s *Store) path(k string) string {
	sum := sha256.Sum256([]byte(k))
	return filepath.Join(s.dir, hex.EncodeToString(sum[:])+".json")
}

// blobsOf lists what a manifest or index refers to.
func blobsOf(body []byte) map[task.ID]bool {
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	blobs := map[task.ID]bool{}
	if json.Unmarshal(body, &m) != nil {
		return blobs
	}
	list := append(m.Layers, m.Manifests...)
	if m.Config != nil {
		list = append(list, *m.Config)
	}
	for _, d := range list {
		if id, err := task.ParseID(d.Digest.String()); err == nil {
			blobs[id] = true
		}
	}
	return blobs
}

// Add notes that the registry gave m to a client. credKey is an opaque key of
// its credential, "" for none.
func (s *Store) Add(m Manifest, credKey string) error {
	if len(m.Body) > maxBody {
		return nil
	}
	m.Anonymous, m.Used = credKey == anonymousKey, s.now()
	k := key(m.Registry, m.Repo, m.Digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.grants[k]
	fresh := h == nil
	if m.Tag == "" {
		m.Tag = s.tags[k]
	}
	delete(s.tags, k)
	if fresh {
		if err := s.sweepLocked(); err != nil {
			return err
		}
		h = &held{m: m, blobs: blobsOf(m.Body), creds: map[string]bool{}}
		s.grants[k] = h
	}
	changed := fresh || m.Anonymous && !h.m.Anonymous || m.Tag != "" && m.Tag != h.m.Tag || m.Used.Sub(h.m.Used) > s.ttl/10
	h.creds[credKey] = true
	h.m.Anonymous = h.m.Anonymous || m.Anonymous
	if m.Tag != "" {
		if err := s.untagLocked(m.Registry, m.Repo, m.Tag, k); err != nil {
			return err
		}
		h.m.Tag = m.Tag
	}
	if !changed {
		return nil
	}
	h.m.Used = m.Used
	return s.save(k, h.m)
}

// Tag notes that the registry says that a tag leads to a manifest. It grants
// nothing: clients ask for a tag's digest first and are let into the manifest by
// that.
func (s *Store) Tag(registry, repo, tag, digest string) error {
	k := key(registry, repo, digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.untagLocked(registry, repo, tag, k); err != nil {
		return err
	}
	h := s.grants[k]
	if h == nil {
		if len(s.tags) >= maxTags {
			clear(s.tags)
		}
		s.tags[k] = tag
		return nil
	}
	if h.m.Tag == tag {
		return nil
	}
	h.m.Tag = tag
	return s.save(k, h.m)
}

// sweepLocked drops the grants that have ended.
func (s *Store) sweepLocked() error {
	for k, h := range s.grants {
		if s.liveLocked(h) {
			continue
		}
		if err := os.Remove(s.path(k)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("dropping a grant: %w", err)
		}
		delete(s.grants, k)
	}
	return nil
}

// untagLocked takes a tag from the manifest that it led to before.
func (s *Store) untagLocked(registry, repo, tag, except string) error {
	for k, h := range s.grants {
		if k == except || h.m.Tag != tag || h.m.Repo != repo || h.m.Registry != registry {
			continue
		}
		h.m.Tag = ""
		if err := s.save(k, h.m); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) save(k string, m Manifest) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("keeping a grant: %w", err)
	}
	f, err := os.CreateTemp(s.dir, tempName)
	if err != nil {
		return fmt.Errorf("keeping a grant: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.path(k))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keeping a grant: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// Manifest returns a granted manifest by tag or digest. With anyCred it is the
// node itself that asks, otherwise a client with credKey.
func (s *Store) Manifest(registry, repo, ref, credKey string, anyCred bool) (Manifest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, h := range s.grants {
		if h.m.Registry == registry && h.m.Repo == repo && (h.m.Digest == ref || h.m.Tag == ref) && s.liveLocked(h) && (anyCred || h.creds[credKey]) {
			s.usedLocked(k, h)
			return h.m, true
		}
	}
	return Manifest{}, false
}

// Covers reports whether a granted manifest of the repository refers to id. With
// anyCred the question is asked by the node itself, otherwise for credKey.
func (s *Store) Covers(registry, repo string, id task.ID, credKey string, anyCred bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, h := range s.grants {
		if h.blobs[id] && h.m.Registry == registry && h.m.Repo == repo && s.liveLocked(h) && (anyCred || h.creds[credKey]) {
			s.usedLocked(k, h)
			return true
		}
	}
	return false
}

// usedLocked notes that a grant was used. On disk that is kept to a tenth of
// the TTL.
func (s *Store) usedLocked(k string, h *held) {
	now := s.now()
	if now.Sub(h.m.Used) <= s.ttl/10 {
		return
	}
	h.m.Used = now
	_ = s.save(k, h.m) // in memory it counts all the same
}

func (s *Store) liveLocked(h *held) bool { return s.now().Sub(h.m.Used) <= s.ttl }
