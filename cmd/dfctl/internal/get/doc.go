// Package get is dfctl get: it downloads one URL through this node's dfdaemon
// into a file.
//
// FILE appears complete or not at all. Until then the content is in
// .FILE.dfget-part beside it, and .FILE.dfget-part.json says which task it
// belongs to and what the SHA-256 of its first bytes is. A later run continues
// after those bytes only if the task is the same one and they still have that
// SHA-256; otherwise it starts over. So neither another version of the content
// nor a part file damaged by a crash ends up in FILE. Two runs for the same
// FILE exclude each other by a lock on the part file.
//
// FILE is synced before it gets its name. If it exists it is replaced, a
// symbolic link itself and not what it points to; other things than files are
// refused. With --sha256 nothing that does not match is ever kept. Content
// written to standard output has left before its end proves it.
package get
