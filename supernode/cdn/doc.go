// Package cdn is the supernode's cache: it fetches each task from its origin
// at most once and keeps the pieces on disk for the swarm.
//
// A request names what it wants (all of the content, or ranges) and with what
// credential. The first request for a task opens it at the origin with its own
// credential, and that answer decides whether the requester may have it; later
// requesters are checked with a HEAD of their own, once per credential and
// repository for a short time. Asked-for ranges are fetched before the rest of
// a content that is wanted whole.
//
// A piece is published with its SHA-256 as soon as it is on disk, but the last
// piece of content whose digest is known is held back until the digest of the
// whole matches: nobody can finish content that is not what was asked for. On a
// mismatch all pieces are dropped and Events.Revoked is called.
//
// Content whose length the origin does not tell is first read to its end, then
// published.
//
// Credentials are kept in memory, as long as their task is being fetched.
package cdn
