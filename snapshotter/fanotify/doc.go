// Package fanotify asks for the content of sparse files while they are read,
// with the kernel's pre-content events (FAN_PRE_ACCESS, Linux 6.14).
//
// A Watch is a fanotify group that watches one regular file. The kernel stops
// every read of the marked file before it happens, until the event that tells
// the range is answered; Watch.Serve has the range filled and answers.
//
// # What is guaranteed
//
// No reader gets bytes of a range before the handler has returned for it: not
// when the handler fails (the reader gets EIO), and not when the process that
// serves is killed at whatever point, as long as another process holds the
// files of Watch.Files. Readers wait until a successor, made with Restore,
// serves.
//
// # What callers must do
//
//   - When the last descriptor of a group is closed the kernel lets all its
//     waiting readers go on, onto zeros. Give Files to a keeper before anything
//     reads the file, and never trust again what was read through a group that
//     was lost.
//   - A file that was opened before it was marked raises no events, ever. Open
//     the descriptor that fills before Mark, and what reads (a mount) after it.
//   - Nothing may map a marked file into memory: the kernel asks once for the
//     whole mapping.
//   - Fill only through that descriptor. A write or truncation through another
//     one is an event itself.
//
// # How a killed process loses nothing
//
// An event that was read but not answered can be answered through the group by
// the number that its descriptor had in the dead process, and by nothing else.
// So events are read straight into a ring in shared memory (a memfd) that
// outlives the process: the kernel itself writes the number there before the
// event counts as read. An unanswered event's slot is never empty, and a number
// is in the ring at most once, because
//
//   - one process reads a group: it holds a lock on the ring, which the kernel
//     gives back only after the last thread of that process has ended;
//   - an event is answered first, then its slot emptied, and only then its
//     descriptor closed, so that the number cannot come again while the ring
//     still has it;
//   - nothing is read while the ring has events of an earlier process: these
//     are filled and answered first. Their numbers are unknown to the new
//     process and could come again.
//
// An event that was answered but is still in the ring is answered a second
// time, which the kernel refuses (ENOENT) without harm.
package fanotify
