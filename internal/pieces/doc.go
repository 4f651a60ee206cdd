// Package pieces is the data plane: how a peer or the supernode passes pieces
// to another peer.
//
// It is HTTP/1.1. Every request carries a ticket (internal/ticket) in
// X-Damselfly-Ticket and is refused with 403 without a valid one.
//
//	GET /v1/tasks/{task}/pieces/{n}[?wait=DURATION]
//
// answers 200 with the bytes of piece n, 404 if it is not held (after waiting
// for it up to the given duration), and 503 when too many uploads are waiting.
// X-Damselfly-Priority (demand, prefetch or preheat; default demand) orders
// requests when all upload slots are taken.
//
//	GET /v1/tasks/{task}/haves
//
// answers 200 with an endless feed of the pieces that the sender offers to
// this holder: pairs of unsigned varints, first piece and count, sent as they
// become available. A count of 0 keeps the connection alive. The feed only
// ever adds; a piece that has gone since is answered with 404.
//
// Bytes received from a peer prove nothing: the receiver compares their
// SHA-256 with the digest that the supernode published before it keeps or
// passes on any of them. Senders do not hash on the way out; content whose
// file may have changed since it was verified is checked again first (see
// internal/piecestore).
package pieces
