// Command p2p measures how Damselfly distributes content to many nodes, on one
// machine, in a network lab with shaped links (see perf/internal/netlab).
//
// It builds the daemons, runs an origin, a supernode and one dfdaemon per node,
// each on a host of its own, and downloads through the nodes' mirrors all at
// once. One JSON document goes to standard output, tables for people to
// standard error. It needs root, except with -mode scale and -mode idle, and
// leaves nothing behind; the lab of a run that was killed is removed by the
// next.
//
// What the clients verify and what the origin costs is not in the daemons'
// figures: they are other processes. All of them share the machine's
// processors, though, and with them the lab's network: figures are those of a
// cluster only as long as "idle_cpu_percent" leaves room.
//
// README.md in perf describes modes, options and fields.
package main
