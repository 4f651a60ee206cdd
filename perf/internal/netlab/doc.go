// Package netlab makes a small network of hosts with shaped links out of
// network namespaces, for measurements on one machine. It needs root, ip(8),
// tc(8) and nsenter(1).
//
// Every host has one interface, eth0, on a bridge, and its own loopback. Its
// link carries the given rate in each direction: a token bucket on the host's
// side for what it sends, and one on the bridge's side for what it receives.
// With several zones each zone has its own bridge, joined to the core bridge by
// an unshaped trunk whose counters tell what crossed the zone's border; hosts
// without a zone are on the core bridge.
//
// The bridges live in a namespace of their own: nothing is changed in the
// machine's own network and the addresses cannot collide with any outside the
// lab. Nothing in the lab can reach anything outside it.
//
// Namespaces are named damselfly-lab-PID-START-HOST after the process that
// made them. Close removes them; Up first removes those whose process no
// longer exists. Programs that were started in a host are their starter's to
// end.
//
// A token bucket counts Ethernet frames. Of 1,514 bytes in a full frame TCP
// carries 1,448, so content moves at 95.6 % of the rate at best.
package netlab
