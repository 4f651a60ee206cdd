// Package key is the dfctl commands for the key that signs the indexes of
// images: create, show, export.
//
// A key is made once and never replaced: nodes that trust it would stop
// trusting what it has signed. No command prints a private key.
package key
