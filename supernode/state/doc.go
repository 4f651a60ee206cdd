// Package state keeps what a supernode must remember across restarts: small
// values under a bucket and a key.
//
// The contract of a Store, which statetest checks on every implementation:
//
//   - A bucket exists as soon as something is put into it; an unknown bucket
//     is an empty one.
//   - When Put or Delete returns nil, the change survives a crash of the
//     process and, for OpenBolt, of the machine. When it returns an error,
//     nothing has changed.
//   - Values belong to the caller, going in and coming out: no later change to
//     the bytes on one side is seen on the other.
//   - ForEach visits one consistent state of the bucket in ascending byte order
//     of the keys. Its callback may use the same Store, also to change the
//     bucket that is visited; what it changes is not visited.
//   - Methods are safe for concurrent use. After Close, all but Close return
//     ErrClosed.
//
// A Store is not a queue or a lock, and it knows no transactions over several
// keys: who needs two facts to change together puts them in one value.
package state
