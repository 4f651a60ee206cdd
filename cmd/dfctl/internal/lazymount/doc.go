// Package lazymount mounts an image through FUSE from this very process, without
// a snapshotter: content is fetched when somebody reads it.
//
// What it guarantees:
//
//   - A read returns verified bytes or fails with an I/O error. When the process
//     ends, however it ends, the mount fails: it never shows other bytes.
//   - Content comes through the node's dfdaemon as long as that has it to give,
//     and else straight from where the image is.
//   - Close leaves no mount behind, and no files but those of a cache directory
//     that the caller has named.
//
// A Recorder notes what is read, in order, and says it by paths and offsets, as
// dfctl image convert --trace wants it.
package lazymount
