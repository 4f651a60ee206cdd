// Package fdkeeper has other processes hold open descriptors, so that what they
// stand for outlives the process that made them.
//
// A set is a name, some bytes that belong to it, and 1 to 253 descriptors. A
// Holder keeps sets: Client in the process of a Server on this machine, Systemd
// in the service manager. Multi keeps every set in several holders, and again
// in one that lost what it had.
//
// # Contract of every Holder
//
//   - Put replaces what the name had before. A set is held entirely or not at
//     all. The holder has duplicates: the caller may close its own afterwards.
//   - Put is refused (ErrStale) if the holder has the name with a higher stamp,
//     so that a late repetition does not undo a newer Put.
//   - Get returns new descriptors that belong to the caller.
//   - Every method may be repeated without harm, and called concurrently.
//   - A holder forgets everything when its process ends (systemd: when the unit
//     stops, unless it keeps the store).
//
// # Protocol
//
// A Server listens on a unix socket of type SOCK_SEQPACKET and talks only to
// processes of its own user. Each packet is one message: a header of 16 bytes
// (kind, 1 zero byte, length of the name, length of the body, stamp; big-endian)
// followed by name and body; descriptors come with it as SCM_RIGHTS. The client
// begins with a hello that carries the version; then each request gets one
// reply. A message that breaks these rules ends the connection.
package fdkeeper
