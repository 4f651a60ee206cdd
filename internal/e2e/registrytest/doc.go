// Package registrytest is a registry and file server for tests, on loopback.
//
// It serves blobs, manifests and plain files with ranges, asks for credentials
// where the test says so, counts what it sends, and can be made to stall in the
// middle of a body, to lie, or to be down.
package registrytest
