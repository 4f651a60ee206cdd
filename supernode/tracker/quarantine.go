package tracker

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/pieces"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
	"github.com/damselfly-io/damselfly/scheduler"
)

// probeTimeout bounds a look at what an accused peer sends.
const probeTimeout = 5 * time.Second

// maxReports bounds the reports kept; the oldest go first.
const maxReports = 4096

// accuse handles a report by p of a bad piece: the supernode asks the accused
// for the same piece, and policy decides over all reports.
func (t *Tracker) accuse(p *peer, b *apiv1.BadPiece) {
	id, err := task.ParseID(b.TaskId)
	if err != nil || !t.accusable(p.name, b.Parent) {
		return
	}
	report := scheduler.Report{Parent: b.Parent, Reporter: p.name, Piece: int(b.Piece)}
	bad, err := t.probe(id, int(b.Piece), b.Parent)
	if err != nil {
		t.o.Log.Debug("could not look at an accused peer's piece", "node", b.Parent, "error", err)
	}
	report.Confirmed = bad
	t.o.Log.Warn("a peer was reported for a bad piece", "node", b.Parent, "reporter", p.name,
		"task", id.Short(), "piece", b.Piece, "confirmed", bad)

	t.mu.Lock()
	// One word of each about each counts, so that nobody can crowd out others.
	t.reports = slices.DeleteFunc(t.reports, func(r scheduler.Report) bool {
		same := r.Parent == report.Parent && r.Reporter == report.Reporter
		report.Confirmed = report.Confirmed || same && r.Confirmed
		return same
	})
	t.reports = append(t.reports, report)
	if len(t.reports) > maxReports {
		t.reports = append([]scheduler.Report(nil), t.reports[len(t.reports)-maxReports:]...)
	}
	var fresh []string
	for _, name := range scheduler.Quarantine(t.reports) {
		if _, already := t.quarantine[name]; !already {
			t.quarantine[name] = t.o.Now().Add(t.o.Quarantine)
			fresh = append(fresh, name)
		}
	}
	t.isolateLocked(fresh)
	t.mu.Unlock()
	for _, name := range fresh {
		t.o.Log.Error("a peer is quarantined", "node", name, "for", t.o.Quarantine)
		if t.o.OnQuarantine != nil {
			t.o.OnQuarantine(name)
		}
	}
}

// accusable reports whether reporter may have had a piece from parent.
func (t *Tracker) accusable(reporter, parent string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, connected := t.peers[parent]
	return connected && parent != reporter
}

// probe fetches a piece from a peer and reports whether it is bad.
func (t *Tracker) probe(id task.ID, piece int, parent string) (bad bool, err error) {
	t.mu.Lock()
	accused, s := t.peers[parent], t.swarms[id]
	t.mu.Unlock()
	if accused == nil || s == nil {
		return false, fmt.Errorf("node %q is not connected, or %s is not active", parent, id.Short())
	}
	s.mu.Lock()
	obj, table := s.obj, s.table
	s.mu.Unlock()
	if obj == nil || piece >= table.Count() {
		return false, fmt.Errorf("piece %d of %s is unknown", piece, id.Short())
	}
	want, ok := obj.Digest(piece)
	if !ok {
		return false, fmt.Errorf("the digest of piece %d of %s is unknown", piece, id.Short())
	}
	ctx, cancel := context.WithTimeout(t.ctx, probeTimeout)
	defer cancel()
	permit := ticket.ServingKey(t.o.MasterKey, parent).Issue(ticket.Ticket{
		Task: id, Parent: parent, Holder: t.o.Name, Expires: t.o.Now().Add(time.Minute),
	})
	_, n := table.Piece(piece)
	body, err := t.o.Pieces.Piece(ctx, pieces.Parent{Address: accused.address, Ticket: permit}, id, piece, n, pieces.Demand, 0)
	if err != nil {
		return false, err
	}
	defer body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(body, n)); err != nil {
		return false, fmt.Errorf("reading piece %d of %s from %s: %w", piece, id.Short(), parent, err)
	}
	return task.Digest(h.Sum(nil)) != want, nil
}

// isolateLocked takes names out of all lists of parents and tells everybody.
// The caller holds t.mu.
func (t *Tracker) isolateLocked(names []string) {
	if len(names) == 0 {
		return
	}
	for _, s := range t.swarms {
		s.mu.Lock()
		for _, m := range s.members {
			for _, name := range names {
				if _, ok := m.links[name]; ok {
					delete(m.links, name)
					m.p.out.mark(s.id, newParents)
				}
			}
		}
		s.mu.Unlock()
	}
	msg := &apiv1.SupernodeMessage{Kind: &apiv1.SupernodeMessage_Quarantined{Quarantined: &apiv1.Quarantined{Names: names}}}
	for _, p := range t.peers {
		p.out.send(msg)
	}
}

// forgetReportsLocked lets a peer start afresh after its quarantine.
func (t *Tracker) forgetReportsLocked(parent string) {
	kept := t.reports[:0]
	for _, r := range t.reports {
		if r.Parent != parent {
			kept = append(kept, r)
		}
	}
	t.reports = kept
}
