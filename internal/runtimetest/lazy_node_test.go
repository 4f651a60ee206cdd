package runtimetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// damselfly is the snapshotter under test, as containerd calls it.
const damselfly = "damselfly"

// backends are the ways to mount that each are tested.
var backends = []string{"erofs", "fuse"}

// needLazy skips or fails tests where lazy images cannot be mounted.
func needLazy(t *testing.T) {
	t.Helper()
	needRuntimes(t)
	testenv.Kernel(t, 6, 15)
	testenv.Tool(t, "mount")
}

// node is a node that mounts images lazily: a dfdaemon, a keeper, a snapshotter
// and a containerd.
type lazyNode struct {
	*daemon // the dfdaemon
	cluster *cluster

	keeper, snapshotter *daemon
	socket              string // of the snapshotter
	data                string // the snapshotter's data directory
	runtime             *containerd
}

// lazyOptions changes how a node is run.
type lazyOptions struct {
	backend string   // default erofs
	args    []string // more of the snapshotter's
	data    string   // the snapshotter's data directory
	trust   string   // the trust policy, a file
	release *release // default: the installed one
	at      place
}

// lazyNode runs a node. Nothing is completed in the background unless the
// options say so.
func (c *cluster) lazyNode(t *testing.T, name string, o lazyOptions) *lazyNode {
	t.Helper()
	t.Cleanup(func() { unmountBelow(t, c.dir) }) // when all that may have mounted has ended
	n := &lazyNode{cluster: c, daemon: c.nodeAt(t, name, o.at)}
	n.socket, n.data = filepath.Join(c.dir, name+"-snap.sock"), cmp.Or(o.data, filepath.Join(c.dir, name+"-snap"))
	keeper := filepath.Join(c.dir, name+"-keeper.sock")
	t.Cleanup(func() { endSpare(t, filepath.Join(c.dir, name+"-keeper-spare.sock")) })
	n.keeper = &daemon{name: name + "-keeper", path: program(t, "snapshotter"), args: []string{"keeper", "--address", keeper}, at: o.at}
	n.snapshotter = &daemon{name: name + "-snapshotter", path: program(t, "snapshotter"), http: o.at.address(t), at: o.at}
	n.snapshotter.args = []string{
		"--address", n.socket, "--dfdaemon", filepath.Join(c.dir, name+".sock"), "--keeper", keeper, "--data-dir", n.data,
		"--http", n.snapshotter.http, "--backend", cmp.Or(o.backend, "erofs"), "--cache-min-free", "0", "--background=false",
		"--lookup-timeout", "20s", "--trust-policy", o.trust,
	}
	n.snapshotter.args = append(n.snapshotter.args, o.args...)
	n.runKeeper(t)
	c.run(t, n.snapshotter)
	n.startRuntime(t, o)
	return n
}

// runKeeper starts the keeper, or starts it again.
func (n *lazyNode) runKeeper(t *testing.T) {
	t.Helper()
	n.keeper.launch(t, n.cluster.dir)
	n.awaitKeeper(t)
}

func (n *lazyNode) awaitKeeper(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		if n.keeper.ended() {
			t.Fatalf("the keeper has ended:\n%s", tail(n.keeper.log))
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unixpacket", n.keeper.args[2])
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}, "the keeper answers")
}

// awaitSnapshots waits until containerd reaches the snapshotter: after it has
// not, it waits for a while before it tries again.
func (n *lazyNode) awaitSnapshots(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		_, err := n.runtime.ctr(t, "snapshots", "--snapshotter", damselfly, "ls")
		return err == nil
	}, "containerd reaches the snapshotter")
}

func (n *lazyNode) startRuntime(t *testing.T, o lazyOptions) {
	t.Helper()
	r := installed(t)
	if o.release != nil {
		r = *o.release
	}
	r.prefix = o.at.prefix
	text := fmt.Sprintf(`[proxy_plugins.%s]
  type = "snapshot"
  address = %q
`, damselfly, n.socket)
	if r.transfer {
		text += fmt.Sprintf(`  [proxy_plugins.%s.exports]
    root = %q
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/%s"
  snapshotter = %q
`, damselfly, n.data, runtime.GOARCH, damselfly)
	}
	n.runtime = r.start(t, n.name, n.mirror, keepViews, text)
}

// builtRelease is the release of containerd whose ctr passes the labels of snapshots.
func builtRelease(t *testing.T, version containerdbuild.Release) *release {
	t.Helper()
	p, err := containerdbuild.Build(t.Context(), version)
	if err != nil {
		t.Fatal(err)
	}
	return &release{daemon: p.Containerd, tool: p.Ctr, env: p.Env(), transfer: true}
}

// pull pulls an image with the labels by which the snapshotter finds its index:
// as CRI does where ctr does not.
func (n *lazyNode) pull(t *testing.T, img *image) error {
	t.Helper()
	if n.runtime.transfer {
		out, err := n.runtime.ctr(t, "images", "pull", "--hosts-dir", n.runtime.hosts, "--snapshotter", damselfly, img.ref())
		if err != nil {
			return fmt.Errorf("%w: %s", err, withoutProgress(out))
		}
		return nil
	}
	c, err := client.New(n.runtime.socket)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a connection
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "default"), time.Minute)
	defer cancel()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(n.runtime.hosts)}),
	})
	_, err = c.Pull(ctx, img.ref(), client.WithPullUnpack, client.WithPullSnapshotter(damselfly),
		client.WithResolver(resolver), client.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(img.ref())))
	return err
}

func (n *lazyNode) mustPull(t *testing.T, img *image) {
	t.Helper()
	if err := n.pull(t, img); err != nil {
		t.Fatalf("pull %s on %s: %v", img.ref(), n.name, err)
	}
}

// greet runs the image's command in a container and compares what it prints.
func (n *lazyNode) greet(t *testing.T, img *image) {
	t.Helper()
	// See containerd.check for why more than once.
	var out string
	for range 5 {
		var err error
		if out, err = n.runtime.ctr(t, "run", "--rm", "--snapshotter", damselfly, img.ref(), "run-"+rand.Text()); err != nil {
			t.Fatalf("run %s: %v\n%s", img.ref(), err, out)
		}
		if out != "" {
			break
		}
	}
	if out != img.greeting {
		t.Errorf("the container printed %q, want %q", out, img.greeting)
	}
}

// view mounts a view of the lowest layers of an image and returns where.
func (n *lazyNode) view(t *testing.T, img *lazyImage, layers int) string {
	t.Helper()
	key := "view-" + rand.Text()
	at := filepath.Join(t.TempDir(), "view")
	subdir(t, at)
	n.runtime.must(t, "snapshots", "--snapshotter", damselfly, "view", key, img.packed.chainID(layers))
	mount := strings.Fields(n.runtime.must(t, "snapshots", "--snapshotter", damselfly, "mounts", at, key))
	if out, err := command(t.Context(), testenv.Tool(t, "mount"), mount[1:]...); err != nil {
		t.Fatalf("%s: %v: %s", mount, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	return at
}

// lazyClient asks the snapshotter in the way of dfctl.
func (n *lazyNode) lazyClient(t *testing.T) apiv1.LazyClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return apiv1.NewLazyClient(conn)
}

// size is how many bytes an image's mount has in all, and how many of them have
// not arrived.
func (n *lazyNode) size(t *testing.T, img *image) (total, missing int64) {
	t.Helper()
	resp, err := n.lazyClient(t).ListImages(t.Context(), &apiv1.ListImagesRequest{Image: img.digest()})
	if err != nil {
		t.Fatal(err)
	}
	for _, im := range resp.Images {
		for _, m := range im.Mounts {
			return m.TotalBytes, m.TotalBytes - m.PresentBytes
		}
	}
	t.Fatalf("%s is not mounted on %s", img.ref(), n.name)
	return 0, 0
}

// awaitComplete waits until all of an image has arrived in the background.
func (n *lazyNode) awaitComplete(t *testing.T, img *image) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		_, missing := n.size(t, img)
		return missing == 0
	}, "all of "+img.ref()+" is on "+n.name)
}

// unmountBelow takes away all mounts below a directory.
func unmountBelow(t *testing.T, dir string) {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
		return
	}
	for _, m := range slices.Backward(all) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", m.Mountpoint, err)
		}
	}
}

// mountsBelow are the places of mounts below a directory.
func mountsBelow(t *testing.T, dir string) (all []string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range infos {
		all = append(all, m.Mountpoint)
	}
	return all
}

// logged waits until a daemon's log has a line with all of the words.
func (d *daemon) logged(t *testing.T, words ...string) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		text, err := os.ReadFile(d.log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return true
			}
		}
		return false
	}, fmt.Sprintf("%s logs %q", d.name, words))
}

// info is what ctr tells of the labels of the snapshot of the lowest layers of an
// image.
func (n *lazyNode) info(t *testing.T, img *lazyImage, layers int) map[string]string {
	t.Helper()
	var info struct{ Labels map[string]string }
	out := n.runtime.must(t, "snapshots", "--snapshotter", damselfly, "info", img.packed.chainID(layers))
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return info.Labels
}

// checkDeviceNode opens a device through a mount, as a container may if it is
// allowed to.
func (n *lazyNode) checkDeviceNode(t *testing.T, img *lazyImage) {
	t.Helper()
	f, err := os.Open(filepath.Join(n.view(t, img, len(img.layers)), "dev/null"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	if b, err := io.ReadAll(f); err != nil || len(b) != 0 {
		t.Errorf("read of /dev/null: %d bytes, %v", len(b), err)
	}
}

// checkUnmarked fails unless no device of the node is watched any more.
func (n *lazyNode) checkUnmarked(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		for _, d := range []*daemon{n.keeper, n.snapshotter, n.daemon} {
			fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.proc.Pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, fd := range fds {
				if to, err := os.Readlink(fd); err == nil && to == "anon_inode:[fanotify]" {
					return false
				}
			}
		}
		return true
	}, "nobody has a fanotify group of "+n.name)
}

// endSpare ends the keeper that the snapshotter has started on its own, which
// outlives it.
func endSpare(t *testing.T, socket string) {
	pid := spareOf(t, socket)
	if pid == 0 {
		return
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Error(err)
		return
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("end the spare keeper: %v", err)
	}
}

// spareOf returns the process that listens on a socket of a spare keeper, 0 if
// there is none.
func spareOf(t *testing.T, socket string) int {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		line, err := os.ReadFile(name)
		if err != nil || !slices.Contains(strings.Split(string(line), "\x00"), socket) {
			continue // a process that has ended, or another one
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			return pid
		}
	}
	return 0
}
