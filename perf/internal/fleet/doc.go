// Package fleet runs a supernode and its dfdaemons as processes on this
// machine, for measurements and demonstrations.
//
// Where a process runs is up to its Host: the machine itself (Local) or a host
// of a network lab. The binaries are built from this module, so what runs is
// what is checked out.
//
// Every process that is started is ended by its id: by Process.Kill, by the
// end of the context it was started under, and by the kernel should this
// process die without either. Its output goes to a file and its last lines
// into the error when it ends before it was told to.
package fleet
