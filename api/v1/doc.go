// Package apiv1 is the generated Go form of Damselfly's gRPC interfaces:
// Swarm, between daemons and the supernode, and Node, between a daemon and the
// programs on its node. The .proto files beside it are their specification.
package apiv1
