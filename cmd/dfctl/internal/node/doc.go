// Package node points a node's container runtime at dfdaemon's mirror and
// takes it back: the commands dfctl node setup, status and remove.
//
// What it guarantees:
//
//   - A configuration file is either as it was or as it should be, never half
//     written: temporary file in the same directory, sync, rename, directory
//     sync. The original and what is about to be written are recorded under
//     /var/lib/damselfly/node before the file changes, so remove works after a
//     crash at any point.
//   - An edit adds and changes nothing else. Comments, order and formatting
//     stay, and the edited document is decoded and compared with the original
//     before it is written; a file that cannot be edited that way is refused.
//   - remove restores every file byte for byte with its mode, owner and
//     modification time, and deletes the files and directories setup created.
//     A file that somebody edited in between keeps their edits and loses only
//     our part; where the two cannot be told apart, remove stops and says so.
//   - setup is declarative and idempotent: it puts exactly the given registries
//     in force for a runtime, takes back earlier ones that are not named, and a
//     second run changes nothing. Two runs at once are kept apart by a lock.
//   - Everything is checked before the first file changes.
//
// What it does not do: it restarts nothing (it says what must be restarted),
// follows no symbolic link in place of a file, keeps no extended attributes,
// and does not touch per-user settings such as rootless Podman's.
//
// A mirror that is down costs time and nothing else: all four runtimes go on to
// the upstream registry.
package node
