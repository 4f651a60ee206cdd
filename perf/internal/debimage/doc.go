// Package debimage makes real Debian images as OCI layouts, for benchmarks: a
// minimal system made by debootstrap, a layer for each group of packages that
// apt installs on top of it, and a small last layer, as an image of an
// application has.
//
// It needs root, debootstrap, and the package sources of the machine, which it
// copies into the image while it installs and which stay in it. Layouts are
// kept in the given directory and made again only when they are not there; a
// run that is cut short leaves no layout behind. Layers are compressed by gzip
// at its usual level.
package debimage
