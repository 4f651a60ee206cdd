// Command lazymount measures lazy mounts beside what they stand in for, in the same
// run: files of a complete image beside the same files on ext4, readers of an image
// that is still being filled beside a download from the registry, many containers at
// once beside the same image unpacked by containerd's overlayfs snapshotter. It also
// measures what many mounts cost, and what a second node takes from the registry.
//
// Each registry, supernode and node is a host of a network lab. Repetitions of the
// two sides take turns, and the ratio that is reported is the median of the ratios
// of neighbours: what else the machine does then hits both. Every figure that the
// project has a goal for says whether it was reached; not reaching it is no error.
// Content that comes differently than it is in the image is.
//
// It needs root, ip, tc, nsenter, runc, skopeo and docker-registry, and builds
// containerd. Progress and a table go to standard error, one JSON document to
// standard output.
package main
