package scheduler

import "time"

// OriginState is what a peer knows when it considers fetching a piece from the
// origin itself.
type OriginState struct {
	// Granted says that the supernode told this peer to fetch this piece from
	// the origin, for instance because it cannot reach the origin.
	Granted bool
	// SupernodeReachable says that the peer is connected to a supernode.
	SupernodeReachable bool
	// UnreachableFor is how long it has not been.
	UnreachableFor time.Duration
	// AtParents says that a parent that answers has the piece.
	AtParents bool
	// Active is the number of this node's requests to origins now, Cap the
	// most it may have.
	Active, Cap int
}

// MayGoToOrigin reports whether a peer may fetch a piece from the origin now.
// The node's cap always holds. Beyond that, a peer that the supernode has sent
// may go; any other only after no supernode was reachable for grace, and only
// for a piece that no parent has.
func MayGoToOrigin(s OriginState, grace time.Duration) bool {
	if s.Active >= s.Cap {
		return false
	}
	if s.Granted {
		return true
	}
	return !s.SupernodeReachable && s.UnreachableFor >= grace && !s.AtParents
}
