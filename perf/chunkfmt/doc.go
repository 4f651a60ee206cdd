// Command chunkfmt measures the image format on real Debian images: how fast
// images are converted and how large the result is, beside ctr-remote (eStargz);
// what a next version of an image costs; how long a node needs from the indexes
// to a mountable image; and what sizes of chunks and groups, codecs and levels
// do to all that.
//
// Conversions are whole runs of dfctl, built from this checkout, from one OCI
// layout to another, so that no registry's time is in the figures. The opening
// of an image is measured in a process of its own, on one processor. The peer's
// figures are those of its client; what its containerd uses is left out, in its
// favour.
//
// One JSON document goes to standard output, tables for people to standard
// error, plots to the directory that -plots names. Making images needs root;
// they are kept in the directory that -work names.
package main
