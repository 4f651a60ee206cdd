// Package authority is the right of a node itself to read repositories: what its
// own programs, which have no credentials, read by.
//
// A repository is read with one of, in this order: the credential that the
// registry accepted last from a client of the node's mirror for that repository,
// the node's configured credential for the registry, none. Whether the node may
// read at all is settled by the registry's yes to one of these, which counts for
// a short time, or by a grant (package grant), which counts as long as it lives:
// then what the node holds, or gets from the swarm, needs no further yes.
//
// Credentials of clients are kept in memory only, bounded in number and time,
// and each is dropped when the registry refuses it. They are used for the
// repository that they were accepted for and no other.
//
// What is read by the node's authority must not reach clients of the mirror that
// have not been let in themselves.
package authority
