// Package containerd runs a containerd of a benchmark's own, with a root, a state
// and sockets apart from the machine's, and measures pulls and starts on it as its
// users see them: through ctr, whose own start counts.
//
// Images are pulled by the transfer service, through hosts.toml. There is no CRI:
// it would look after pods and a network.
package containerd
