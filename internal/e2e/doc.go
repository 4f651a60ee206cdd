// Package e2e has tests of a whole cluster in one process: a supernode and its
// daemons over loopback, before a registry of the test's. It has no code of its
// own.
package e2e
