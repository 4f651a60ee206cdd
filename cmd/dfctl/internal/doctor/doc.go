// Package doctor is dfctl doctor: it looks at a node and says what keeps lazy
// images, or the swarm, from working there.
//
// Each Finding has what was found and, unless that is good, what it means and
// what to do. Nothing is changed: probes make files and a mount in the
// snapshotter's data directory and take them away again. What only root can
// look at is said to be unknown when somebody else asks, and is no problem.
package doctor
