// Command demo shows Damselfly at work on one machine, with Go alone and
// without root.
//
// It builds the daemons, runs a supernode and three dfdaemons on loopback
// addresses, and pulls an image through each of them in the way of a container
// runtime: first through all at once, then again. The image is made of Go's own
// files and served by a registry within this process; -image HOST/REPO:TAG
// pulls that one from its own registry instead, if it can be pulled
// anonymously.
//
// What every node received is checked against its digest. The program succeeds
// only if all of it was right and the registry gave out no more than one copy.
// It leaves no process and no file behind.
package main
