// Package device keeps the decoded content of blobs in sparse files.
//
// A device is the address space that a chunkfmt index gives a blob's decoded
// bytes. It is named by its Key, never by the blob's digest alone, and is shared
// by all images whose indexes agree on it. See Table for what belongs where.
package device
