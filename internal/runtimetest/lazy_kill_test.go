package runtimetest

import (
	"path/filepath"
	"strings"
	"testing"
)

// victims are processes that are killed at the same time. The last but one are
// all that hold the kernel's files besides systemd or, without it, the spare
// keeper.
var victims = [][]string{
	{"snapshotter"}, {"keeper"}, {"dfdaemon"}, {"supernode"},
	{"snapshotter", "keeper"}, {"keeper", "dfdaemon", "snapshotter"}, {"snapshotter", "dfdaemon", "supernode"},
}

// TestLazyKilled kills processes while readers compare bytes: no byte is wrong and
// no read fails, they only wait.
func TestLazyKilled(t *testing.T) {
	needLazy(t)
	t.Parallel()
	for i, b := range backends {
		t.Run(b, func(t *testing.T) {
			site := newLazySite(t)
			cluster := site.cluster(t, clusterOptions{})
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			for j, v := range victims {
				t.Run(strings.Join(v, "+"), func(t *testing.T) {
					img := newBulk(t, "team/"+strings.Join(v, "-"), 40, 256<<10, uint64(100*i+j+1))
					site.push(t, img)
					n.killWhileRead(t, site, img, v)
				})
			}
		})
	}
}

// killWhileRead reads an image that the registry sends slowly, and kills processes
// three times meanwhile.
func (n *lazyNode) killWhileRead(t *testing.T, site *lazySite, img *lazyImage, names []string) {
	t.Helper()
	n.mustPull(t, img.image)
	root := n.view(t, img, 1)
	site.front.slow(6 << 20)
	site.front.reset()
	r := startReaders(root, img.files)
	for _, part := range []int64{10, 40, 70} {
		site.front.awaitSent(t, "/blobs/", img.size()*part/100)
		n.killAll(names)
		n.restart(t, names)
	}
	if size := img.size(); site.front.blobBytes() >= size {
		t.Logf("the last kill came when the registry had sent %d of %d bytes", site.front.blobBytes(), size)
	}
	site.front.slow(0)
	r.check(t)

	dropPages(t, root, img.files)
	startReaders(root, img.files).check(t)
	startReaders(n.view(t, img, 1), img.files).check(t)
	n.greet(t, img.image)
}

// killAll kills processes of the node at once.
func (n *lazyNode) killAll(names []string) {
	for _, name := range names {
		_ = n.part(name).proc.Kill() // it may have ended already
	}
	for _, name := range names {
		<-n.part(name).done
	}
}

// part returns a process of the node, or its supernode.
func (n *lazyNode) part(name string) *process {
	if d := n.daemonOf(name); d != nil {
		return d.process
	}
	return n.runtime.process
}

// daemonOf returns one of our daemons by name, nil for containerd.
func (n *lazyNode) daemonOf(name string) *daemon {
	return map[string]*daemon{
		"snapshotter": n.snapshotter, "keeper": n.keeper, "dfdaemon": n.daemon, "supernode": n.cluster.supernode,
	}[name]
}

// restart starts processes of the node again, all at once, and waits until they
// answer.
func (n *lazyNode) restart(t *testing.T, names []string) {
	t.Helper()
	for _, name := range names {
		if d := n.daemonOf(name); d != nil {
			d.launch(t, n.cluster.dir)
		}
	}
	for _, name := range names {
		n.await(t, name)
	}
	n.awaitSnapshots(t)
}

// await waits until a process answers that was started again. containerd it
// starts.
func (n *lazyNode) await(t *testing.T, name string) {
	t.Helper()
	switch d := n.daemonOf(name); name {
	case "keeper":
		n.awaitKeeper(t)
	case "containerd":
		n.runtime.run(t)
	default:
		d.awaitHTTP(t, "http://"+d.http+"/healthz")
	}
}

// spareSocket is where the keeper listens that the snapshotter starts.
func (n *lazyNode) spareSocket() string {
	return filepath.Join(n.cluster.dir, n.name+"-keeper-spare.sock")
}

// TestLazyAllIsLost kills everything that holds the kernel's files, the spare
// keeper too, which only the end of a machine does otherwise. What is mounted
// after that has the right bytes. With FUSE what was mounted before fails; the
// kernel lets readers of EROFS go on where nobody holds its files.
func TestLazyAllIsLost(t *testing.T) {
	needLazy(t)
	t.Parallel()
	for i, b := range backends {
		t.Run(b, func(t *testing.T) {
			site := newLazySite(t)
			cluster := site.cluster(t, clusterOptions{})
			n := cluster.lazyNode(t, b, lazyOptions{backend: b, trust: site.trust})
			img := newBulk(t, "team/lost", 40, 256<<10, uint64(1000+i))
			site.push(t, img)
			n.mustPull(t, img.image)
			site.front.slow(6 << 20)
			site.front.reset()
			r := startReaders(n.view(t, img, 1), img.files)
			site.front.awaitSent(t, "/blobs/", img.size()*30/100)
			endSpare(t, n.spareSocket())
			n.killAll([]string{"snapshotter", "dfdaemon", "keeper"})
			for _, name := range []string{"keeper", "dfdaemon", "snapshotter"} { // the order of their units
				n.daemonOf(name).launch(t, cluster.dir)
				n.await(t, name)
			}
			n.awaitSnapshots(t)
			site.front.slow(0)
			r.end(t)
			if b == "fuse" {
				reportFirst(t, "wrong bytes", r.wrong)
			}
			if len(r.wrong)+len(r.failed) == 0 {
				t.Error("the readers have noticed nothing: the test shows nothing")
			}
			n.snapshotter.logged(t, "level=WARN", "could not be taken over", img.packed.chainID(1))
			startReaders(n.view(t, img, 1), img.files).check(t)
			n.greet(t, img.image)
		})
	}
}
