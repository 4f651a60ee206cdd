// Package systemd has the units of the daemons and the configuration that they
// start with. The files are the product; Go's only part is to test them.
package systemd
