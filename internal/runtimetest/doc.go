// Package runtimetest tests the daemons from end to end with the programs they
// are made for: containerd, ctr, runc, skopeo and docker-registry, as the
// distribution packages them, and this module's own binaries as processes.
//
// It has no code outside its tests. They are integration tests (see
// internal/testenv) and need root. Everything runs on loopback with ports,
// sockets and directories of the test's own, so they neither need nor touch a
// containerd of the machine's. Each process is ended by its id when its test
// ends, and by the kernel should the test's process die first.
//
// What is promised, and checked here: images pulled through the mirror are what
// was pushed, byte by byte and file by file, and run; the registry sends each
// byte once for all nodes; no credential gets what the registry would not give
// it, and none reaches a disk or a log; pulls survive tokens that expire, a
// registry that is down, and a supernode or a dfdaemon that is killed.
//
// The TestLazy tests add keepers and snapshotters, and need Linux 6.15. Images
// that are mounted before they have arrived have the trees that overlayfs makes of
// them, on both backends; readers get no wrong byte and no error while the
// processes that serve them are killed, alone or together; what is complete needs
// neither registry nor supernode; and images that cannot be mounted are pulled,
// with the reason in a label.
//
// The TestUnpack tests compare what containerd unpacks with what is mounted from
// the EROFS images of package chunkfmt's trees: every prefix of the layers, by
// walking both. DAMSELFLY_TEST_LAYOUTS=DIR:DIR adds the images of OCI layouts.
package runtimetest
