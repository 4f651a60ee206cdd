// Package nodetest is a working dfdaemon for tests of dfctl: the gRPC service
// Node on a unix socket, serving content from memory.
//
// It answers as api/v1/node.proto says, and fails where a test tells it to. It
// does not verify what it serves, so that tests can see who does.
package nodetest
