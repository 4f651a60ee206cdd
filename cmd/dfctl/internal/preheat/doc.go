// Package preheat is dfctl preheat: it asks the supernode to bring images and
// files to nodes before they are needed, and follows such jobs.
//
// A job belongs to the supernode. Ending the command, by Ctrl-C or because the
// connection is lost, does not end the job; preheat cancel does. The command
// reconnects a few times by itself. It succeeds only if every blob is where it
// was asked for: a job that is partly done exits with 1 and names each node
// that failed, and why.
package preheat
