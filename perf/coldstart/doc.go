// Command coldstart measures how long a container takes from `ctr images pull` to
// the first byte that its command prints, on a node that has nothing of the image:
// with containerd's overlayfs snapshotter, with Damselfly on the first node of a
// cluster that uses the image and on a second one, and with stargz-snapshotter
// where its program is given.
//
// Each registry, supernode and node is a host of a network lab whose link carries
// -rate. Each start has new daemons on empty directories; the page cache is
// dropped, but for the programs that every node runs all the time and for the
// registry's storage. Contenders take turns. It fails when Damselfly did not
// mount the image lazily: a pull that was fast for another reason does not count.
//
// It needs root, ip, tc, nsenter, runc, skopeo and docker-registry, and builds
// containerd. Progress and a table go to standard error, one JSON document to
// standard output.
package main
