// Package images has dfctl image: it makes the chunkfmt indexes of images,
// shows and verifies them, compares images by them, and exports images as file
// systems.
//
// Commands take references as package internal/image parses them. Where an
// image has several platforms, convert does all, and the others need
// --platform unless this machine's is among them.
//
// Errors carry exit codes (package exit): what is not there is NotFound, what
// the registry or the trust policy does not allow is Refused, content that does
// not match its digest is Mismatch.
package images
