// Package confdoc holds the tests that keep what is written about the daemons'
// settings true: docs/configuration.md is generated from the configuration
// structs, and the files in deploy/systemd are read as the daemons read them.
// It has no code.
package confdoc
