package preheat

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

const (
	bucket = "preheats"
	// maxStored bounds what finished jobs take in the store, in bytes.
	maxStored = 64 << 20
)

// record is a job in the store. It has no secrets.
type record struct {
	Job     Job      `json:"job"`
	Targets []string `json:"targets,omitempty"`
	// Secret says that credentials, or secrets in the URL, were given.
	Secret bool `json:"secret,omitempty"`
	// URL says that those in the URL were: it cannot be read without them.
	URL bool `json:"url,omitempty"`
}

// finished is what is kept in memory of a finished job.
type finished struct {
	summary Job // without blobs
	bytes   int64
}

// key sorts as its number does.
func key(id int64) string { return fmt.Sprintf("%020d", id) }

// store writes j to the store.
func (m *Manager) store(j *job) error {
	_, err := m.write(j, j.snapshot())
	return err
}

func (m *Manager) write(j *job, snap Job) (size int64, err error) {
	b, err := json.Marshal(record{Job: snap, Targets: j.targets, Secret: j.secret, URL: j.rawURL != "" || j.lost && j.safeURL != ""})
	if err == nil {
		err = m.o.State.Put(bucket, key(snap.ID), b)
	}
	if err != nil {
		return 0, fmt.Errorf("storing preheat job %d: %w", snap.ID, err)
	}
	return int64(len(b)), nil
}

func (m *Manager) fetch(id int64) (r record, err error) {
	b, err := m.o.State.Get(bucket, key(id))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("reading preheat job %d: %w", id, err)
	}
	return r, nil
}

// load reads the store. A record that cannot be read is left alone.
func (m *Manager) load() error {
	err := m.o.State.ForEach(bucket, func(k string, v []byte) error {
		id, err := strconv.ParseInt(k, 10, 64)
		if err != nil || id < 1 {
			m.o.Log.Error("a stored preheat job is not readable", "key", k)
			return nil
		}
		m.lastID = max(m.lastID, id)
		var r record
		if err := json.Unmarshal(v, &r); err != nil || r.Job.ID != id {
			m.o.Log.Error("a stored preheat job is not readable", "job", id, "error", err)
			return nil
		}
		if r.Job.State.Final() {
			m.addFinishedLocked(r.Job, int64(len(v)))
			return nil
		}
		m.resume(r)
		return nil
	})
	if err != nil {
		return err
	}
	m.pruneLocked()
	if len(m.queue) > 0 {
		m.nudge()
	}
	return nil
}

// resume queues a job that was unfinished when the supernode stopped.
func (m *Manager) resume(r record) {
	j := &job{id: r.Job.ID, targets: r.Targets, secret: r.Secret, lost: r.Secret, watchers: map[chan Job]struct{}{}, snap: r.Job}
	if r.URL {
		j.safeURL = r.Job.URL
	}
	again := Request{Type: r.Job.Type, Ref: r.Job.Ref, URL: r.Job.URL, SHA256: r.Job.SHA256, Platforms: r.Job.Platforms, Accelerate: r.Job.Accelerate}
	var err error
	if j.subject, _, err = again.check(m.o.Upstream); err == nil && r.URL {
		err = errors.New("the supernode was restarted, and query values of a URL, which may be secrets, are not kept across a restart: submit the job again")
	}
	m.live[j.id] = j
	if err != nil {
		m.finishLocked(j, j.ended(Failed, err.Error(), m.o.Now()))
		return
	}
	m.queue = append(m.queue, j)
}

// finish makes s the final state of j.
func (m *Manager) finish(j *job, s Job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finishLocked(j, s)
}

func (m *Manager) finishLocked(j *job, s Job) {
	size, err := m.write(j, s)
	if err != nil {
		// It stays unfinished in the store, and so is run again after a
		// restart. What is shown until then is right.
		m.o.Log.Error("the end of a preheat job could not be stored", "job", s.ID, "error", err)
		j.publish(s)
		return
	}
	delete(m.live, s.ID)
	m.addFinishedLocked(s, size)
	m.pruneLocked()
	m.o.Log.Info("a preheat job is finished", "job", s.ID, "state", s.State, "error", s.Error,
		"bytes", s.Totals.BytesHeld, "blobs", s.Totals.BlobsTotal, "peers", s.Totals.PeersTotal, "peers_done", s.Totals.PeersDone)
	j.publish(s)
}

func (m *Manager) addFinishedLocked(s Job, size int64) {
	s.Blobs = nil
	// In order of their numbers: the highest stays, and is not given again.
	i, _ := slices.BinarySearchFunc(m.finished, s.ID, func(f finished, id int64) int { return cmp.Compare(f.summary.ID, id) })
	m.finished = slices.Insert(m.finished, i, finished{summary: s, bytes: size})
	m.byID[s.ID] = struct{}{}
	m.bytes += size
}

// pruneLocked drops the oldest finished jobs beyond the bounds, but never the
// latest.
func (m *Manager) pruneLocked() {
	for len(m.finished) > 1 && (len(m.finished) > m.o.Retain || m.bytes > maxStored) {
		f := m.finished[0]
		if err := m.o.State.Delete(bucket, key(f.summary.ID)); err != nil {
			m.o.Log.Error("an old preheat job could not be removed", "job", f.summary.ID, "error", err)
			return
		}
		m.finished = m.finished[1:]
		m.bytes -= f.bytes
		delete(m.byID, f.summary.ID)
	}
}
