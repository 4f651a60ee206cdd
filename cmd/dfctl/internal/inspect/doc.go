// Package inspect is the part of dfctl that looks at what there is: tasks and
// cache of this node's dfdaemon, and peers and tasks of the cluster.
//
// A task may be named by the beginning of its ID, with or without "sha256:" or
// "url:", if only one task begins so. Only "task rm" and "cache prune" change
// anything. Lists are sorted and, in JSON, never null.
package inspect
