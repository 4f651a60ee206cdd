// Package containerd has the pieces of configuration that make containerd use
// Damselfly's snapshotter. The files are the product; Go's only part is to test
// each with the releases that it is for.
package containerd
