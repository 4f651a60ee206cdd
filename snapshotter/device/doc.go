// Package device keeps the decoded content of blobs in sparse files.
//
// A device is the address space that a chunkfmt index gives a blob's decoded
// bytes. It is named by its Key, never by the blob's digest alone, and is shared
// by all images whose indexes agree on it. It is filled group by group; a Table
// says what belongs where and how it is proven. What a caller gives to
// Device.Write is trusted to be what Table.Decode returned.
//
// # What the store guarantees
//
//   - There is one Device for a key, however many ask for it.
//   - A group that is present has its bytes in the file. After a crash of the
//     process or a power cut, at any moment, a device may know of fewer groups
//     than it had, never of one whose bytes are not on the disk.
//   - Neither Write nor ReadAt waits for a sync.
//   - What is referenced is never evicted, and no byte of it that was present is
//     taken away. Groups that Drop forgets keep their bytes until they are
//     written again or nobody references the device, because somebody who was
//     told that they are present may be about to read them.
//   - Nothing is evicted or removed before Recovered is called: a device that
//     nobody references may be mounted since before the process was started.
//   - Opening a device reads, writes and truncates nothing in a data file of the
//     right size: none of that could be done to a file that a fanotify group
//     marks, unless through the descriptor given to SetWriter.
//
// It does not protect against a change of the data file by others, or by the
// disk, other than that it was replaced or has another size. Verify finds such
// changes.
//
// # On disk
//
//	lock                locked while a process has the store open
//	<64 hex>/           one device, by its key
//	    table           the Table; its modification time is the last use
//	    data            the device, sparse, of the length DeviceSize
//	    present         which groups are there, and a digest of each
//	    origins         repositories that have the blob, a line each, newest last
//	.new-*, .trash-*    made or removed when the process ended; emptied by Open
//
// A device's directory is made under another name and renamed, and renamed
// before it is removed. Making it syncs nothing, because a container waits for
// that: a table and a list of present groups prove themselves, so that what a
// power cut leaves of a new directory is either good or recognised. The store's
// goroutine syncs it with the first groups; Sync does so at once.
//
// The file present has two slots, each with a sequence number and a digest,
// that are written in turn, after a sync of the data, and a SHA-256 for each
// group of the bytes that were written, which Verify compares. Groups are taken
// out of both slots, and those are synced, before their bytes are; so whatever
// slot is found later may be believed. Eviction removes the file, durably, before
// the bytes. A file that is absent, damaged or of another data file says that
// nothing is present.
//
// # Eviction
//
// Beyond Options.Limit, or with less free space than Options.MinFree, devices
// that nobody references lose their bytes, least recently used first. Their
// tables stay, so that Load works without a registry, except where Options.Keep
// says that nothing needs them: then the whole directory goes.
//
// # Memory and descriptors
//
// A referenced device costs one descriptor and, mostly for its table, about 100
// bytes per group; of others the store knows only key, blob, size and last use.
package device
