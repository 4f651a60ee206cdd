package preheat

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/damselfly-io/damselfly/supernode/tracker"
)

// Scope says where content is wanted. At most one field is set; the zero Scope
// is the supernode alone. Every other scope includes the supernode, through
// which the nodes get the content.
type Scope struct {
	// AllPeers means every node that is connected when the job is submitted.
	AllPeers bool
	// Peers are nodes by name. One that is not connected gets some time to come
	// back and is then reported as failed.
	Peers []string
	// Zone means the nodes of one zone.
	Zone string
	// Percent of all nodes, 1 to 100, rounded up. Which ones depends on the
	// content and the nodes' names alone, so the same job meets the same nodes.
	Percent int
}

const (
	scopeSupernode = "supernode"
	scopeAllPeers  = "all_peers"
	scopeForms     = `want "supernode", "all_peers", {"peers": [NAME, …]}, {"zone": ZONE} or {"percent": 1 to 100}`
	// maxPeers bounds the names in a request.
	maxPeers = 100_000
)

type scopeJSON struct {
	Peers   []string `json:"peers,omitempty"`
	Zone    *string  `json:"zone,omitempty"`
	Percent *int     `json:"percent,omitempty"`
}

// MarshalJSON writes the form that UnmarshalJSON reads.
func (s Scope) MarshalJSON() ([]byte, error) {
	switch {
	case s.AllPeers:
		return json.Marshal(scopeAllPeers)
	case len(s.Peers) > 0:
		return json.Marshal(scopeJSON{Peers: s.Peers})
	case s.Zone != "":
		return json.Marshal(scopeJSON{Zone: &s.Zone})
	case s.Percent != 0:
		return json.Marshal(scopeJSON{Percent: &s.Percent})
	}
	return json.Marshal(scopeSupernode)
}

// UnmarshalJSON reads "supernode", "all_peers" or an object with one of peers,
// zone and percent. Errors are *InvalidError.
func (s *Scope) UnmarshalJSON(b []byte) error {
	*s = Scope{}
	var word string
	if json.Unmarshal(b, &word) == nil {
		switch word {
		case scopeSupernode, "": // "" is also what null decodes to
		case scopeAllPeers:
			s.AllPeers = true
		default:
			return invalid("scope", "%.100q is unknown: %s", word, scopeForms)
		}
		return nil
	}
	var in scopeJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return invalid("scope", "%v: %s", err, scopeForms)
	}
	return s.set(in)
}

func (s *Scope) set(in scopeJSON) error {
	given := 0
	if in.Peers != nil {
		given++
		s.Peers = in.Peers
	}
	if in.Zone != nil {
		given++
		s.Zone = *in.Zone
	}
	if in.Percent != nil {
		given++
		s.Percent = *in.Percent
	}
	switch {
	case given != 1:
		return invalid("scope", "%d of peers, zone and percent are given: %s", given, scopeForms)
	case in.Peers != nil && (len(in.Peers) == 0 || len(in.Peers) > maxPeers || slices.Contains(in.Peers, "")):
		return invalid("scope.peers", "want 1 to %d names", maxPeers)
	case in.Zone != nil && *in.Zone == "":
		return invalid("scope.zone", "is empty")
	case in.Percent != nil && (*in.Percent < 1 || *in.Percent > 100):
		return invalid("scope.percent", "is %d, want 1 to 100", *in.Percent)
	}
	return nil
}

// choose returns the names of the nodes that the scope means, sorted, nil for
// the supernode alone. Seed stands for the content.
func (s Scope) choose(peers []tracker.PeerInfo, seed string) ([]string, error) {
	var names []string
	for _, p := range peers {
		if s.AllPeers || s.Percent > 0 || s.Zone != "" && p.Zone == s.Zone || slices.Contains(s.Peers, p.Name) {
			names = append(names, p.Name)
		}
	}
	switch {
	case !s.AllPeers && s.Percent == 0 && s.Zone == "" && len(s.Peers) == 0:
		return nil, nil
	case len(names) == 0:
		return nil, fmt.Errorf("%w %s: %d are connected (see GET /api/v1/peers)", ErrNoPeers, s, len(peers))
	case len(s.Peers) > 0:
		names = slices.Clone(s.Peers)
	case s.Percent > 0:
		names = pick(names, (len(names)*s.Percent+99)/100, seed)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// String returns the JSON form, shortened.
func (s Scope) String() string {
	b, err := s.MarshalJSON()
	if err != nil {
		return scopeSupernode
	}
	return fmt.Sprintf("%.200s", b)
}

// pick returns the n names that hash lowest together with seed.
func pick(names []string, n int, seed string) []string {
	type ranked struct {
		rank [sha256.Size]byte
		name string
	}
	all := make([]ranked, len(names))
	for i, name := range names {
		all[i] = ranked{sha256.Sum256([]byte(seed + "\x00" + name)), name}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(bytes.Compare(a.rank[:], b.rank[:]), cmp.Compare(a.name, b.name))
	})
	picked := make([]string, n)
	for i := range picked {
		picked[i] = all[i].name
	}
	return picked
}
