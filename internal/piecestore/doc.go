// Package piecestore keeps the pieces of tasks on disk.
//
// A piece is held once its bytes are in the task's data file, had the right
// digest on the way in, and a record in the task's journal says so. The store
// guarantees:
//
//   - A held piece is never written again, and unverified bytes never reach the
//     region of a held piece, however many writers race for it.
//   - After a crash of the process the store has every piece that was held, and
//     claims no other. After a power cut it may have fewer.
//   - Check never passes bytes that are not those the piece was held with,
//     unless they were changed under the file system (see below).
//   - Held bytes together with those being written stay within the limit, and
//     the free space of the file system above the floor, as far as the store's
//     own writes decide. Whole tasks are evicted for that, least recently used
//     first; never one that is referenced or pinned.
//
// # On disk
//
//	lock                             locked while a process has the store open
//	tasks/<kind>/<2 hex>/<64 hex>/   one task
//	    data                         content, sparse, as long as the whole
//	    journal                      what the task is and what of it is held
//	scratch/, trash/                 emptied by Open
//
// The tree is the whole state; there is no database beside it. A task's last
// access is the journal's modification time, to the minute. A task's directory
// is made in scratch and renamed into place, and renamed into trash before it
// is deleted, so that no half of one is ever seen.
//
// # Why nothing is synced
//
// A piece's record is written after its bytes, and neither is synced: that
// would cost more than fetching. The kernel keeps both when the process is
// killed. After a power cut a record may have reached the disk and the bytes
// not; therefore every piece is in doubt after Open, and its first Check reads
// it and compares the digest. What fails is dropped and fetched again. A record
// that was cut short ends the journal, because each has a CRC.
//
// # Damage while running
//
// The store compares size, times and inode of the data file with those it left
// after its own last write, and puts all held pieces of the task in doubt when
// they differ. A change that comes while one of its own writes to the same file
// is under way (microseconds), or in the same tick of the file system's clock,
// goes unseen, and so does a disk that returns other bytes than were written.
// Receivers check digests too.
//
// # Memory and descriptors
//
// For a task that nobody uses the store keeps its table and one bit per piece.
// Digests, which are by far the larger part, and two open files are kept for
// referenced tasks and the last few used ones.
package piecestore
