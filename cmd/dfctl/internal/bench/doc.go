// Package bench is dfctl bench: it measures on this node, with what is there.
//
// bench fs reads files of one directory, or of two with the same files, and
// compares them. bench pull has containerd pull an image by several snapshotters,
// and says how long it takes until its file system can be used. Figures are
// medians, and what else the machine does is in them.
package bench
