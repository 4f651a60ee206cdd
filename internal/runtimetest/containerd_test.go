package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// containerd is a containerd of the test's own whose ctr pulls by the hosts.toml
// files of one directory.
type containerd struct {
	*process
	release
	name               string
	dir, socket, hosts string
	home               *testing.T // ends it, also if a subtest has started it again
}

// release is a containerd that is installed or was built.
type release struct {
	daemon, tool string
	env          []string // nil: that of this process
	// transfer is whether ctr pulls by the transfer service, whose snapshots have
	// labels that say what they are of.
	transfer bool
	// prefix are words before every command: in which network it runs.
	prefix []string
}

// installed is the containerd of the machine.
func installed(t *testing.T) release {
	t.Helper()
	return release{daemon: testenv.Tool(t, "containerd"), tool: testenv.Tool(t, "ctr")}
}

// command is a command of a release, in its network and environment.
func (r release) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	words := append(append(append([]string{}, r.prefix...), path), args...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = r.env
	return cmd
}

// deadServer is an upstream that a pull must not need: whatever goes past the
// mirror fails.
const deadServer = "http://127.0.0.1:1"

// startContainerd runs the machine's containerd, whose only way to the registry
// is mirror; with an empty mirror, the test writes hosts.toml itself. config is
// added to its configuration.
func startContainerd(t *testing.T, name, mirror string, config ...string) *containerd {
	t.Helper()
	return installed(t).start(t, name, mirror, config...)
}

// start is startContainerd for a release.
func (r release) start(t *testing.T, name, mirror string, config ...string) *containerd {
	t.Helper()
	dir := shortDir(t)
	c := &containerd{release: r, home: t, name: name, dir: dir, socket: filepath.Join(dir, "c.sock"), hosts: filepath.Join(dir, "hosts")}
	if mirror != "" {
		hosts := filepath.Join(subdir(t, c.hosts, registryName), "hosts.toml")
		text := fmt.Sprintf("server = %q\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", deadServer, mirror)
		if err := os.WriteFile(hosts, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// No CRI: it would look after pods and a network. No opt: it makes
	// /opt/containerd.
	text := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[debug]
  level = "warn"
[grpc]
  address = %q
[ttrpc]
  address = %q
%s`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, c.socket+".ttrpc", strings.Join(config, ""))
	if err := os.WriteFile(c.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.run(t)
	return c
}

func (c *containerd) config() string { return filepath.Join(c.dir, "config.toml") }

// run starts the daemon, or starts it again.
func (c *containerd) run(t *testing.T) {
	t.Helper()
	// It outlives the context of the test, whose cleanup ends it.
	cmd := c.command(context.Background(), c.daemon, "--config", c.config())
	c.process = startCommand(c.home, "containerd of "+c.name, filepath.Join(c.dir, "log"), cmd)
	testenv.Eventually(t, func() bool {
		if c.ended() {
			t.Fatalf("containerd has ended:\n%s", tail(c.log))
		}
		_, err := c.ctr(t, "version")
		return err == nil
	}, "containerd answers")
}

// ctr runs ctr on this containerd.
func (c *containerd) ctr(t *testing.T, args ...string) (string, error) {
	return c.ctrFor(t, time.Minute, args...)
}

// ctrFor is ctr with a time limit. What it complains about is returned only if
// it fails: releases that are about to drop something say so every time.
func (c *containerd) ctrFor(t *testing.T, limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := c.command(ctx, c.tool, append([]string{"--address", c.socket}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	var said, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &complaint
	err := cmd.Run()
	if err != nil {
		said.Write(complaint.Bytes())
	}
	return said.String(), err
}

func (c *containerd) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.ctr(t, args...)
	if err != nil {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// pull pulls an image. user is USER:PASSWORD, empty for none.
func (c *containerd) pull(t *testing.T, img *image, user string) (string, error) {
	args := []string{"images", "pull", "--hosts-dir", c.hosts}
	if user != "" {
		args = append(args, "--user", user)
	}
	out, err := c.ctr(t, append(args, img.ref())...)
	return withoutProgress(out), err
}

// withoutProgress drops the progress that ctr prints many times over.
func withoutProgress(out string) string {
	var kept strings.Builder
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "ctr:") || strings.HasPrefix(line, "time=") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func (c *containerd) mustPull(t *testing.T, img *image, user string) {
	t.Helper()
	if out, err := c.pull(t, img, user); err != nil {
		t.Fatalf("pull %s: %v\n%s", img.ref(), err, out)
	}
}

// result is how a command ended.
type result struct {
	out string
	err error
}

// beginPull pulls an image in the background.
func (c *containerd) beginPull(t *testing.T, img *image, user string) <-chan result {
	t.Helper()
	ended := make(chan result, 1)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		out, err := c.pull(t, img, user)
		ended <- result{out, err}
	}()
	t.Cleanup(func() { <-returned }) // the test's context has ended
	return ended
}

// forget removes an image and all that is left of it, so that the next pull
// fetches it again.
func (c *containerd) forget(t *testing.T, img *image) {
	t.Helper()
	c.must(t, "images", "rm", "--sync", img.ref())
	if left := c.must(t, "content", "ls", "-q"); strings.TrimSpace(left) != "" {
		t.Fatalf("containerd still has content:\n%s", left)
	}
}

// check compares what containerd has with what was pushed: each blob, the
// unpacked tree, and what a container of it prints.
func (c *containerd) check(t *testing.T, img *image) {
	t.Helper()
	for digest, blob := range img.blobs {
		if got := c.must(t, "content", "get", digest); got != string(blob) {
			t.Errorf("%s has %d bytes with digest %s, want %d", digest, len(got), digestOf([]byte(got)), len(blob))
		}
	}
	c.checkTree(t, img)
	// ctr may delete a container that ends at once before it has copied what it
	// printed; what it has copied is not wrong.
	got := ""
	for range 5 {
		if got = c.must(t, "run", "--rm", img.ref(), "hello"); got != "" {
			break
		}
	}
	if got != img.greeting {
		t.Errorf("the container printed %q, want %q", got, img.greeting)
	}
}

func (c *containerd) checkTree(t *testing.T, img *image) {
	t.Helper()
	root := subdir(t, c.dir, "rootfs")
	defer func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", root, err)
		}
		c.must(t, "images", "unmount", "--rm", root)
	}()
	c.must(t, "images", "mount", img.ref(), root)
	got := treeOf(t, root)
	for _, name := range slices.Sorted(maps.Keys(img.tree)) {
		if got[name] != img.tree[name] {
			t.Errorf("%s is %q, want %q", name, got[name], img.tree[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := img.tree[name]; !ok {
			t.Errorf("%s is there (%s) and was not pushed", name, got[name])
		}
	}
}
