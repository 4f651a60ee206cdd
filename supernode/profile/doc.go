// Package profile learns in which order mounts of an image read.
//
// A mount reports the groups of blobs that it read in its first seconds, in order
// of first use. The latest reports of an image come to a profile: what most of
// them have, in the order in which they have it, and then what few of them have
// (Merge). Other nodes fetch in that order before they are asked. A profile is a
// hint: nothing depends on it but speed, and a wrong one costs bandwidth only,
// within its bounds.
//
// Reports are written to the state store within FlushEvery, by Run: a crash loses
// those of the last seconds. The images that were least recently reported or
// asked for are forgotten when there are too many.
package profile
